"""One file, fetched in pieces: resumed where it broke, capped at its signed size, whole only when its digest says so."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from device_agent.errors import NetworkError, TrustError
from device_agent.source import Missing, Source
from runtimes.artifact.files import sha256_file, storage_error, sync_dir

log = logging.getLogger(__name__)
Sleep = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as signed metadata describes it; ``path`` is what the source is asked for."""

    path: str
    size_bytes: int
    sha256: str


def download(
    source: Source, wanted: Wanted, folder: Path, *, attempts: int, sleep: Sleep, backoff_s: float = 1.0
) -> Path:
    """Fetch ``wanted`` into ``folder`` under its digest; a partial file left by an earlier run is continued.

    Args:
        attempts: connections tried before giving up; the partial file then stays for the next update.
        sleep: waits between attempts, in seconds; doubled each time.

    Raises:
        NetworkError: the source failed ``attempts`` times.
        TrustError: the bytes are not the signed ones; the partial file is gone.
        StorageError: the disk is full or refuses.
    """
    done, part = folder / wanted.sha256, folder / f"{wanted.sha256}.part"
    if done.is_file() and sha256_file(done) == wanted.sha256:
        return done
    resumed = part.is_file() and part.stat().st_size > 0
    for attempt in range(attempts):
        try:
            if attempt:
                sleep(backoff_s * 2 ** (attempt - 1))
            _fetch(source, wanted, part)
            if sha256_file(part) == wanted.sha256:
                return _keep(part, done)
            part.unlink()
            if not resumed:
                raise _wrong(wanted)
            resumed = False  # the old piece may have been damaged: once more from the start
        except Missing:
            raise
        except NetworkError as error:
            log.warning("Download of %s broke (attempt %d of %d): %s", wanted.path, attempt + 1, attempts, error)
            if attempt + 1 == attempts:
                raise
        except OSError as error:
            raise storage_error(part, error) from error
    raise _wrong(wanted)


def _fetch(source: Source, wanted: Wanted, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > wanted.size_bytes:
        part.unlink()
        have = 0
    if have == wanted.size_bytes and part.exists():
        return
    start, chunks = source.read(wanted.path, have)
    with part.open("r+b" if part.exists() else "wb") as file:
        file.truncate(start)
        file.seek(start)
        size = _copy(chunks, file, start, wanted)
        file.flush()
        os.fsync(file.fileno())
    if size < wanted.size_bytes:
        raise NetworkError(
            f"{wanted.path} ended after {size} of {wanted.size_bytes} bytes.", remedy="Check the server and network."
        )


def _copy(chunks: Iterator[bytes], file: IO[bytes], size: int, wanted: Wanted) -> int:
    for chunk in chunks:
        size += len(chunk)
        if size > wanted.size_bytes:
            file.truncate(0)
            raise _wrong(wanted)
        file.write(chunk)
    return size


def _keep(part: Path, done: Path) -> Path:
    part.replace(done)
    sync_dir(done.parent)
    return done


def _wrong(wanted: Wanted) -> TrustError:
    return TrustError(
        f"{wanted.path} is not the file that was signed (SHA-256 {wanted.sha256}, {wanted.size_bytes} bytes).",
        remedy="Check the repository: the file was damaged or replaced.",
    )


def read_small(source: Source, wanted: Wanted) -> bytes:
    """Fetch a small signed file into memory. Raises NetworkError, TrustError."""
    data = bytearray()
    for chunk in source.read(wanted.path)[1]:
        data += chunk
        if len(data) > wanted.size_bytes:
            raise _wrong(wanted)
    if hashlib.sha256(data).hexdigest() != wanted.sha256:
        raise _wrong(wanted)
    return bytes(data)


def free_bytes(folder: Path) -> int:
    """Free space for unprivileged users on the file system of ``folder``."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
