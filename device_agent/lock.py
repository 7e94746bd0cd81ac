"""One writer per data folder: the kernel releases the lock when a process dies, however it dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_agent.errors import Busy
from runtimes.artifact.files import storage_error


@contextmanager
def locked(data_dir: Path, name: str = "update", *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold ``<data_dir>/<name>.lock``.

    Raises:
        Busy: another process holds it, still after ``wait_s``.
        StorageError: the file cannot be made.
    """
    path = data_dir / f"{name}.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise storage_error(path, error) from error
    with file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise Busy(
                        f"Another process is updating {data_dir}.", remedy="Wait until it is done, then try again."
                    ) from error
                time.sleep(0.05)
        yield
