"""What time it is on a device that may have no clock.

    now = the latest of: the system's clock, the floor that was kept, the date of this agent

The floor is the latest time that this device has proof of: the system's clock at the last update that went well, and the time at
which signed metadata that it accepted says it was signed. Neither can lift it past the end of the metadata that was accepted with
it, so a clock that once jumped ahead locks nobody out for longer than a refresh of the repository takes. It never goes back.

Signatures are judged at that time: a device whose clock stands at 1970 still refuses what ended before the floor, and accepts what
did not. (TUF 1.0.33, 5.1, asks for one fixed time per update and leaves to the implementer where it comes from.)
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from device_agent.version import MADE
from runtimes.artifact.files import write_atomic

log = logging.getLogger(__name__)
FLOOR_FILE = "time-floor.json"
_STEP = timedelta(hours=1)  # a flash chip need not be written for less


class Clock:
    """The device's time. ``folder`` keeps the floor; ``system`` reads the system's clock (a test brings its own)."""

    def __init__(self, folder: Path, system: datetime | None = None) -> None:
        self._folder = folder
        self._system = system if system is not None else datetime.now(UTC)

    def floor(self) -> datetime:
        """The time before which it certainly is not."""
        try:
            kept = datetime.fromtimestamp(json.loads((self._folder / FLOOR_FILE).read_bytes())["floor_s"], UTC)
        except FileNotFoundError:
            return MADE
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            log.warning("%s is damaged (%s); the agent's own date counts", self._folder / FLOOR_FILE, error)
            return MADE
        return max(kept, MADE)

    def now(self) -> datetime:
        """The time at which signatures are judged."""
        return max(self._system, self.floor())

    def local(self) -> datetime | None:
        """The wall's time, for maintenance windows; None if the system's clock is behind the floor and so knows no time."""
        return self._system.astimezone() if self._system >= self.floor() else None

    def lift(self, signed_at: datetime | None, earliest_end: datetime) -> None:
        """Move the floor after metadata was accepted. Raises StorageError; the old floor stands.

        Args:
            signed_at: when the metadata says that it was signed, if it says so.
            earliest_end: when the first of its signatures ends.
        """
        proofs = [self._system] + ([signed_at] if signed_at is not None else [])
        lifted = min(max(proofs), earliest_end - _STEP)
        if lifted - self.floor() >= _STEP:
            write_atomic(self._folder / FLOOR_FILE, json.dumps({"floor_s": int(lifted.timestamp())}).encode())
