"""Settings of the agent that a channel's publisher may change: one signed target per channel, and the rules that both sides check.

    <channel>/_agent/settings.json   {"schema": ..., "settings": {"update.interval_s": 900, ...}}

Only what is in ``RULES`` can be set from afar: when and how a device looks for releases, when it trusts one, what it reports how
often. Where it gets them from, whom it believes, what it runs, where it listens and where its telemetry goes stay with its own
file: a publisher's key must not be able to turn a device over to somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from runtimes.artifact.manifest import Document, parse_document, reason_of
from runtimes.artifact.schema import Field
from runtimes.artifact.windows import parse_window
from runtimes.errors import ManifestError

SETTINGS_SCHEMA: Final = "edgewright.agent-settings/1"
MAX_SETTINGS_BYTES = 1 << 16
Kind = Literal["switch", "whole", "number", "windows"]


@dataclass(frozen=True, slots=True)
class Rule:
    """``low`` and ``high`` are inclusive; of windows, how many there may be."""

    kind: Kind
    low: float = 0
    high: float = 1

    def objection(self, value: Any) -> str | None:
        """Why ``value`` is not taken, or None."""
        if self.kind == "switch":
            return None if isinstance(value, bool) else "it must be true or false"
        if self.kind == "windows":
            return _windows(value, int(self.high))
        fits = int if self.kind == "whole" else (int, float)
        if isinstance(value, bool) or not isinstance(value, fits) or not self.low <= value <= self.high:
            return f"it must be a {self.kind} {'number ' if self.kind == 'whole' else ''}from {self.low:g} to {self.high:g}"
        return None


def _windows(value: Any, most: int) -> str | None:
    if not isinstance(value, list | tuple) or len(value) > most or not all(isinstance(one, str) for one in value):
        return f"it must be a list of at most {most} windows"
    try:
        for one in value:
            parse_window(one)
    except ValueError as error:
        return str(error)
    return None


_DAY_S = 86_400.0
RULES: Final[Mapping[str, Rule]] = {
    "update.interval_s": Rule("number", 60, 30 * _DAY_S),
    "update.jitter": Rule("number", 0, 1),
    "update.min_speed_bytes_s": Rule("whole", 0, 1 << 30),
    "update.attempts": Rule("whole", 1, 20),
    "update.reserve_bytes": Rule("whole", 0, 1 << 40),
    "update.allow_delta": Rule("switch"),
    "update.windows": Rule("windows", 0, 32),
    "health.confirm_after_s": Rule("number", 0, 30 * _DAY_S),
    "health.confirm_requests": Rule("whole", 0, 1 << 30),
    "health.max_boots": Rule("whole", 1, 1000),
    "health.max_error_rate": Rule("number", 0, 1),
    "health.min_requests": Rule("whole", 1, 1 << 30),
    "telemetry.flush_interval_s": Rule("number", 1, _DAY_S),
    "telemetry.batch_records": Rule("whole", 1, 10_000),
}


class AgentSettings(Document):
    """``settings`` by dotted name. A name that this version does not know is kept, and not applied."""

    schema_: Literal["edgewright.agent-settings/1"] = Field(default=SETTINGS_SCHEMA, alias="schema")
    settings: dict[str, Any] = Field(default_factory=dict)

    def known(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if name in RULES}

    def unknown(self) -> tuple[str, ...]:
        return tuple(name for name in self.settings if name not in RULES)


def settings_path(channel: str) -> str:
    """The target's path. No model can be called "_agent": names start with a letter or a digit."""
    return f"{channel}/_agent/settings.json"


def read_settings(data: bytes) -> AgentSettings:
    """Parse and check settings: one wrong value refuses all of them. Raises ManifestError."""
    try:
        if len(data) > MAX_SETTINGS_BYTES:
            raise ValueError(f"{len(data)} bytes, at most {MAX_SETTINGS_BYTES} are read")
        settings = parse_document(AgentSettings, data)
        for name, value in settings.known().items():
            if reason := RULES[name].objection(value):
                raise ValueError(f"{name} is {value!r}: {reason}")
        return settings
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"The channel's settings cannot be used: {reason_of(error)}.",
            remedy="Publish them again with edgewright release configure.",
        ) from error
