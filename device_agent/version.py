"""The agent's version, which a release's ``min_agent`` is compared with. A test holds it equal to pyproject.toml's."""

from __future__ import annotations

VERSION = "0.1.0"


def at_least(wanted: str | None) -> bool:
    """Whether this agent is new enough for a release that wants ``wanted`` (dotted numbers; None: any)."""
    return wanted is None or _numbers(VERSION) >= _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    """Unreadable parts count as infinite: a release that cannot be understood is not for this agent."""
    parts = tuple(int(p) if p.isdigit() else 1 << 31 for p in version.split("."))
    return (*parts, 0, 0, 0)[: max(3, len(parts))]
