"""The one POST, against servers that answer in every way they may."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import urlsplit

import pytest

from device_agent.http_post import post
from device_agent.otlp import retry_after_s


@contextmanager
def answering(*pieces: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads one request and sends ``pieces``, each on its own; its URL, and what it read."""
    read: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                data = b""
                while not data.endswith(b"BODY") and (piece := connection.recv(4096)):
                    data += piece
                read.append(data)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", read
        thread.join(10)


@pytest.mark.parametrize(
    ("pieces", "want"),
    [
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",), (200, "", b"ok")),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), (204, "", b"")),
        ((b"HTTP/1.1 50", b"3 Busy\r\nretry-AFTER:  7 \r\n", b"\r\n", b"later"), (503, "7", b"later")),
        ((b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",), (200, "", b"")),
        ((b"HTTP/1.0 429 Too Many\r\nRetry-After: 120\r\n\r\n",), (429, "120", b"")),
    ],
)
def test_answers(pieces: tuple[bytes, ...], want: tuple[int, str, bytes]) -> None:
    with answering(*pieces) as (url, read):
        assert post(urlsplit(url), "/v1/x", {"A": "b"}, b"BODY", 10.0) == want
        head = read[0].decode()
        assert (
            head.startswith("POST /v1/x HTTP/1.1\r\n")
            and "\r\nA: b\r\n" in head
            and "\r\nContent-Length: 4\r\n" in head
        )


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n", b"x" * (1 << 17)])
def test_what_is_no_http_is_an_error(answer: bytes) -> None:
    with answering(answer) as (url, _), pytest.raises((ValueError, OSError)):
        post(urlsplit(url), "/", {}, b"BODY", 10.0)


def test_a_header_cannot_smuggle_another() -> None:
    with answering() as (url, _):
        with pytest.raises(ValueError, match="line break"):
            post(urlsplit(url), "/", {"A": "b\r\nEvil: 1"}, b"BODY", 10.0)
        with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as other:
            other.sendall(b"BODY")  # let the server go


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("12") == 12.0 and retry_after_s("") is None and retry_after_s("soon") is None
    soon = retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert soon is not None and 80 < soon <= 90
    assert retry_after_s("Mon, 01 Jan 2001 00:00:00 GMT") == 0.0
