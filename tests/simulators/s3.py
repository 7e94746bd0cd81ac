"""AWS on loopback: moto's server in a process of its own, for buckets and signing keys."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest

needs_moto = pytest.mark.skipif(
    importlib.util.find_spec("moto") is None or importlib.util.find_spec("boto3") is None,
    reason="moto and boto3 (extra dev) are not installed",
)


@contextmanager
def aws_server() -> Iterator[Callable[[str], Any]]:
    """A server; yields what makes a boto3 client of a service there."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    # A file: a pipe that nobody reads fills up with the lines that the server writes for each request.
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            url = _address(process, said)

            def client(service: str) -> Any:
                import boto3

                names = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
                return boto3.client(service, endpoint_url=url, **names)

            yield client
        finally:
            process.terminate()
            process.wait(10)


def _address(process: subprocess.Popen[bytes], said: IO[str]) -> str:
    """The server says on stderr where it listens."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        said.seek(0)
        text = said.read()
        if "Running on " in text:
            url = text.partition("Running on ")[2].split()[0]
            with urllib.request.urlopen(f"{url}/moto-api/", timeout=30):
                return url
        time.sleep(0.05)
    raise RuntimeError("moto's server did not start")
