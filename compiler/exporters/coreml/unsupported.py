"""How a lowering refuses."""

from __future__ import annotations


class Unsupported(Exception):
    """A lowering's way to refuse a node; build.py turns it into a Refusal."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
