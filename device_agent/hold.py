"""When an update waits although there is one: an application does not want to be disturbed, or the link costs money.

The application's lock is a shared ``flock`` on ``data_dir/hold.lock``, which the kernel gives up when the application dies:

    flock --shared /var/lib/edgewright/hold.lock my-program        # util-linux; or fcntl.flock(file, LOCK_SH)

While anyone holds it nothing is downloaded, tried or activated. An update at work holds it alone, so that an application that
asks for it then waits until the update is done. Rolling back from a release that fails does not wait.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_agent.config import UpdateConfig
from profiles.units import format_bytes
from runtimes.artifact.files import storage_error

FILE = "hold.lock"


@contextmanager
def undisturbed(data_dir: Path) -> Iterator[bool]:
    """Whether no application holds the lock; while True, none gets it. Raises StorageError if the file cannot be made."""
    path = data_dir / FILE
    try:
        file = path.open("ab")
    except OSError as error:
        raise storage_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def too_costly(config: UpdateConfig, size_bytes: int) -> str | None:
    """Why so many bytes are not fetched now; None if they may be.

    Whoever knows the link says so by a file (a dispatcher of NetworkManager, the modem's up script).
    """
    if config.metered_file is None or not config.metered_file.exists() or size_bytes <= config.metered_max_bytes:
        return None
    limit = format_bytes(config.metered_max_bytes)
    return f"the link is metered: {format_bytes(size_bytes)} to fetch, at most {limit} there"
