"""Where a repository's bytes come from: a web server, a folder (also a USB stick), or a single-file bundle.

A source knows nothing of trust: everything it yields is judged by trust.py and by digests.
"""

from __future__ import annotations

import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol
from urllib.parse import quote, unquote, urlsplit

from device_agent.config import UpdateConfig
from device_agent.errors import NetworkError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

CHUNK_BYTES = 1 << 16
Clock = Callable[[], float]
# What zipfile raises for a damaged or strange file; found by fuzzing.
_DAMAGED = (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, struct.error)


class Missing(NetworkError):
    """The source answers, but has no such file."""


class Source(Protocol):
    """Yields a file's bytes.

    An implementation must raise Missing if the file is not there and NetworkError for every other failure, also while
    it is iterated, and must never yield bytes from before the offset that it returned.
    """

    def read(self, path: str, offset: int = 0) -> tuple[int, Iterator[bytes]]:
        """Open ``path`` (relative, with "/") at ``offset``; returns where the bytes really start (``offset`` or 0)."""
        ...


class FolderSource:
    """A repository as plain files."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str, offset: int = 0) -> tuple[int, Iterator[bytes]]:
        file = self._root / path
        try:
            stream = file.open("rb")
            stream.seek(offset)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self._root.is_dir():
                raise unreachable(str(self._root), "the folder does not exist") from error
            raise Missing(f"{file} does not exist.", remedy="Publish the repository again.") from error
        except OSError as error:
            raise unreachable(str(file), str(error.strerror)) from error
        return offset, _chunks(stream, str(file))


class BundleSource:
    """A repository inside one zip file, for devices without a network. Entries carry metadata/ and targets/."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, path: str, offset: int = 0) -> tuple[int, Iterator[bytes]]:
        try:
            archive = zipfile.ZipFile(self._path)
            if archive.getinfo(path).compress_type != zipfile.ZIP_STORED:
                raise unreachable(str(self._path), f"{path} is compressed, which bundles never are")
            stream = archive.open(path)
            stream.seek(offset)
        except KeyError as error:
            raise Missing(f"{self._path} holds no {path}.", remedy="Make the bundle again.") from error
        except _DAMAGED as error:
            raise unreachable(str(self._path), str(error)) from error
        return offset, _chunks(stream, str(self._path))


def _chunks(stream: IO[bytes], name: str) -> Iterator[bytes]:
    with stream:
        while True:
            try:
                chunk = stream.read(CHUNK_BYTES)
            except _DAMAGED as error:
                raise unreachable(name, str(error)) from error
            if not chunk:
                return
            yield chunk


class HttpSource:
    """A repository behind HTTP(S): ranges, a limit on silence and on slowness, no cookies, at most three redirects."""

    def __init__(self, base: str, limits: UpdateConfig, *, clock: Clock = time.monotonic) -> None:
        self._base = base.rstrip("/")
        self._limits = limits
        self._clock = clock
        self._pool: PoolManager | None = None

    def read(self, path: str, offset: int = 0) -> tuple[int, Iterator[bytes]]:
        # python-tuf has quoted role names already ("%2F" must not become a folder); our own paths hold no "%".
        url = f"{self._base}/{quote(path, safe='/%')}"
        response = self._get(url, {"Range": f"bytes={offset}-"} if offset else {})
        if response.status == 416 and offset:  # nothing from there on: the file changed, or we have it all
            response.close()
            response, offset = self._get(url, {}), 0
        if response.status in (403, 404):
            response.close()
            raise Missing(f"{url}: HTTP {response.status}.", remedy="Publish the repository again.")
        if response.status not in (200, 206):
            response.close()
            raise unreachable(url, f"HTTP {response.status}")
        start = offset if response.status == 206 and _starts_at(response, offset) else 0
        if response.status == 206 and start != offset:
            response.close()
            raise unreachable(url, "the server sent another range than asked")
        return start, self._stream(response, url)

    def _get(self, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        import urllib3

        if self._pool is None:
            timeout = urllib3.Timeout(connect=self._limits.timeout_s, read=self._limits.timeout_s)
            # Resuming is download.py's work; urllib3's own retries would hide how often a network fails.
            retries = urllib3.Retry(connect=0, read=0, redirect=3, status=0, other=0)
            self._pool = urllib3.PoolManager(timeout=timeout, retries=retries, maxsize=1)
        try:
            # identity: a digest and a byte range are about the file's own bytes, not about a compressed form of them.
            return self._pool.request(
                "GET", url, headers={"Accept-Encoding": "identity", **headers}, preload_content=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(url, _reason(error)) from error

    def _stream(self, response: BaseHTTPResponse, url: str) -> Iterator[bytes]:
        import urllib3

        window_start, window_bytes = self._clock(), 0
        try:
            # read1 hands over what has arrived; stream() would throw a broken connection's last piece away.
            while chunk := response.read1(CHUNK_BYTES):
                yield chunk
                window_bytes += len(chunk)
                elapsed = self._clock() - window_start
                if elapsed >= self._limits.speed_window_s:
                    if window_bytes / elapsed < self._limits.min_speed_bytes_s:
                        raise unreachable(url, f"only {window_bytes / elapsed:.0f} bytes/s for {elapsed:.0f} s")
                    window_start, window_bytes = self._clock(), 0
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(url, _reason(error)) from error
        finally:
            response.close()


def _starts_at(response: BaseHTTPResponse, offset: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _reason(error: Exception) -> str:
    """The innermost cause: urllib3's outer messages repeat the URL and hide the reason."""
    inner = getattr(error, "reason", None) or error
    return f"{type(inner).__name__}: {inner}"


def unreachable(what: str, reason: str) -> NetworkError:
    return NetworkError(
        f"Cannot read {what}: {reason}.", remedy="Check the repository's address and the network; inference goes on."
    )


def open_source(location: str, limits: UpdateConfig) -> Source:
    """A source for an http(s):// URL, a file:// URL, a folder, or a bundle file."""
    if location.startswith(("http://", "https://")):
        return HttpSource(location, limits)
    path = Path(unquote(urlsplit(location).path)) if location.startswith("file://") else Path(location)
    return BundleSource(path) if path.is_file() else FolderSource(path)
