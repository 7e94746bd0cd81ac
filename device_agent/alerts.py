"""Alerts: levels of drift, latency and errors, raised as events when they change and kept in a file for ``status``.

Limits: PSI as the manifest says (drift.py); 95th percentile of latency above 100 / 200 ms; failed requests above 0.1 / 1 %.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from runtimes.artifact.files import write_atomic

Level = Literal["ok", "warning", "critical"]
P95_MS = (100.0, 200.0)
ERROR_SHARE = (0.001, 0.01)
MIN_REQUESTS = 100  # below, one slow or failed request would be a percent
FILE = "alerts.json"


class Alert(NamedTuple):
    """One watched figure of one release: ``subject`` is model/release, ``value`` in the unit that ``quantity`` names."""

    subject: str
    quantity: str
    level: Level
    value: float


def latency_alert(subject: str, bounds: Sequence[float], counts: Sequence[int]) -> Alert | None:
    """From an interval's histogram (milliseconds); None for too few requests."""
    if sum(counts) < MIN_REQUESTS:
        return None
    value = percentile(bounds, counts, 0.95)
    return Alert(subject, "latency p95 ms", level_of(value, P95_MS), value)


def error_alert(subject: str, outcomes: Mapping[str, int]) -> Alert | None:
    """From an interval's outcomes; requests that were refused are the clients' fault and do not count."""
    failed = outcomes.get("failed", 0)
    total = failed + outcomes.get("ok", 0)
    if total < MIN_REQUESTS:
        return None
    return Alert(subject, "failed share", level_of(failed / total, ERROR_SHARE), failed / total)


def percentile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float:
    """Linear within its bucket (bounds[i-1], bounds[i]]; the open last bucket counts as its lower bound."""
    wanted, seen = share * sum(counts), 0.0
    for index, count in enumerate(counts):
        if count and seen + count >= wanted:
            low = bounds[index - 1] if index else 0.0
            high = bounds[index] if index < len(bounds) else low
            return low + (high - low) * (wanted - seen) / count
        seen += count
    return 0.0


def level_of(value: float, limits: tuple[float, float]) -> Level:
    """``limits``: above the first is a warning, above the second critical."""
    warning, critical = limits
    return "critical" if value > critical else "warning" if value > warning else "ok"


class Alerts:
    """Remembers the level of everything; a damaged or missing file starts anew."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._known: dict[tuple[str, str], Alert] = {(a.subject, a.quantity): a for a in read_alerts(folder)}

    def update(self, found: Sequence[Alert]) -> list[Alert]:
        """Take over ``found``; returns those whose level differs from before (from "ok" for new ones).

        Raises StorageError if the file cannot be written; the levels are remembered all the same.
        """
        changed = []
        for alert in found:
            key = (alert.subject, alert.quantity)
            before = self._known.get(key)
            if alert.level != (before.level if before else "ok"):
                changed.append(alert)
            self._known[key] = alert
        if changed:
            raised = [alert._asdict() for alert in self._known.values() if alert.level != "ok"]
            write_atomic(self._path, json.dumps(raised, indent=1).encode())
        return changed


def read_alerts(folder: Path) -> list[Alert]:
    """What is raised at present; empty where nothing is, or the file is damaged."""
    try:
        document = json.loads((folder / FILE).read_bytes())
        return [Alert(str(a["subject"]), str(a["quantity"]), a["level"], float(a["value"])) for a in document]
    except (OSError, ValueError, KeyError, TypeError):
        return []
