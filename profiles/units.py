"""Units for people. Values carry SI base units in their names (``size_bytes``, ``latency_ns``); only printing converts."""

from __future__ import annotations


def format_bytes(size_bytes: float) -> str:
    """Render a byte count with binary prefixes: ``format_bytes(1536) == "1.5 KiB"``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def format_ms(latency_ns: float) -> str:
    """Render nanoseconds as milliseconds with three significant digits."""
    return f"{latency_ns / 1e6:.3g} ms"
