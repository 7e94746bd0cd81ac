"""One POST over HTTP/1.1, for a sender that needs a status, one header and the first bytes of the answer.

``http.client`` loads OpenSSL and the mail parser, 5 MiB, also for plain http; here OpenSSL comes with the first https endpoint.
Source: RFC 9112. The connection is closed after the answer, so that no body has to be told apart from the next message.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from urllib.parse import SplitResult

MAX_HEAD_BYTES = 1 << 16
MAX_BODY_BYTES = 1 << 12  # of the answer, for messages


def post(
    url: SplitResult, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float
) -> tuple[int, str, bytes]:
    """Status, Retry-After ("" without one) and the beginning of the answer's body, as it came.

    Raises:
        OSError: no connection, or it broke or timed out.
        ValueError: the answer is not HTTP, or a header of ours holds a line break.
    """
    with _connect(url, timeout_s) as connection:
        connection.sendall(_head(url, path, headers, len(body)) + body)
        return _answer(connection)


def _connect(url: SplitResult, timeout_s: float) -> socket.socket:
    host = url.hostname or ""
    secure = url.scheme == "https"
    connection = socket.create_connection((host, url.port or (443 if secure else 80)), timeout=timeout_s)
    if not secure:
        return connection
    import ssl

    try:
        return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def _head(url: SplitResult, path: str, headers: Mapping[str, str], length: int) -> bytes:
    host = url.netloc.rpartition("@")[2]
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {length}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header holds a line break")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _answer(connection: socket.socket) -> tuple[int, str, bytes]:
    data = bytearray()
    while True:
        head, found, rest = bytes(data).partition(b"\r\n\r\n")
        if found and not head.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")):
            break
        if found:  # 100 Continue and its like come before the answer
            data = bytearray(rest)
            continue
        piece = connection.recv(1 << 14)
        data += piece
        if not piece or len(data) > MAX_HEAD_BYTES:
            raise ValueError("the answer is not HTTP")
    status, wish = _read_head(head)
    while len(rest) < MAX_BODY_BYTES and status != 204 and (piece := connection.recv(1 << 14)):
        rest += piece
    return status, wish, rest


def _read_head(head: bytes) -> tuple[int, str]:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit() and len(code) == 3):
        raise ValueError("the answer is not HTTP")
    pairs = (line.partition(":") for line in lines)
    wish = next((value.strip() for name, _, value in pairs if name.strip().lower() == "retry-after"), "")
    return int(code), wish
