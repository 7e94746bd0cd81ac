"""Maintenance windows: when a device may change what it runs.

    02:00-05:00            every night, by the device's own clock
    sat,sun 22:00-04:00    the nights that begin on these days
    mon-fri 01:00-05:00 UTC

Without windows it always may; with several, when one of them is open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_PER_DAY = 24 * 60
_FORM = re.compile(r"(?:([a-z,-]+) )?(\d\d):(\d\d)-(\d\d):(\d\d)( utc)?")


@dataclass(frozen=True, slots=True)
class Window:
    """``days`` on which it opens, 0 is Monday; ``start``, ``end``: minutes of a day, an end before the start of the next one."""

    days: frozenset[int]
    start: int
    end: int
    utc: bool

    def contains(self, moment: datetime) -> bool:
        """``moment`` has the time zone in which the window is meant."""
        minute, day = moment.hour * 60 + moment.minute, moment.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return (day in self.days and minute >= self.start) or ((day - 1) % 7 in self.days and minute < self.end)


def parse_window(text: str) -> Window:
    """Raises ValueError, which says how it is written."""
    found = _FORM.fullmatch(" ".join(text.lower().split()))
    try:
        if found is None:
            raise ValueError
        days, *clock, utc = found.groups()
        hours, minutes = (int(clock[0]), int(clock[2])), (int(clock[1]), int(clock[3]))
        start, end = (h * 60 + m for h, m in zip(hours, minutes, strict=True))
        if max(minutes) > 59 or start >= MINUTES_PER_DAY or end > MINUTES_PER_DAY or start == end:
            raise ValueError
        return Window(_days(days), start, end, utc is not None)
    except ValueError as error:
        raise ValueError(f"{text!r} is no window; write it like 02:00-05:00, or sat,sun 22:00-04:00 UTC") from error


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        one, other = DAYS.index(first), DAYS.index(last or first)
        found |= {day % 7 for day in range(one, other + 1 + (7 if other < one else 0))}
    return frozenset(found)


def is_open(windows: Sequence[str], now: datetime) -> bool:
    """Whether one of ``windows`` is open at ``now`` (aware; its zone is the device's). Raises ValueError for one that is none."""
    utc = now.astimezone(UTC)
    parsed = [parse_window(text) for text in windows]
    return not parsed or any(window.contains(utc if window.utc else now) for window in parsed)
