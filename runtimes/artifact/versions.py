"""Dotted versions, compared part by part."""

from __future__ import annotations

import re


def at_least(version: str, wanted: str | None) -> bool:
    """Whether ``version`` is ``wanted`` or newer (None: any).

    A wanted version that cannot be read is newer than everything: a release that cannot be understood is for nobody. What follows
    the numbers of the version at hand ("1.20.0+cpu", "2.1rc1") does not count.
    """
    return wanted is None or _numbers(version, unreadable=0) >= _numbers(wanted, unreadable=1 << 31)


def _numbers(version: str, *, unreadable: int) -> tuple[int, ...]:
    if unreadable == 0:
        found = re.match(r"\d+(\.\d+)*", version)
        version = found.group() if found else "0"
    parts = tuple(int(p) if p.isdecimal() and p.isascii() else unreadable for p in version.split("."))
    return (*parts, 0, 0, 0)[: max(3, len(parts))]
