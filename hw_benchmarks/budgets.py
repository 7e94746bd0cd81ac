"""A profile's latency, memory and size budgets, held against measurements. Pure functions over a results document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from profiles.schema import Profile
from profiles.units import format_bytes


@dataclass(frozen=True, slots=True)
class BudgetCheck:
    """One budget of one artifact; ``value`` and ``limit`` share a unit.

    ``binding`` is False for what was measured on another kind of machine: a build machine's latency proves nothing about a board.
    """

    artifact: str
    budget: str
    value: float
    limit: float
    binding: bool

    @property
    def ok(self) -> bool:
        return not self.binding or self.value <= self.limit

    @property
    def sentence(self) -> str:
        show = format_bytes if self.budget != "latency" else _milliseconds
        verdict = "within" if self.value <= self.limit else "over"
        note = "" if self.binding else " (measured on another kind of machine: not judged)"
        return f"{self.artifact}: {self.budget} {show(self.value)}, {verdict} the budget of {show(self.limit)}{note}"


def check_budgets(document: Mapping[str, Any], profile: Profile) -> list[BudgetCheck]:
    """Judge every result of ``document`` (see bench.run) against ``profile``.

    Latency is the 90th percentile of single queries; memory the process's peak, interpreter and runtime included. Both bind only
    if the machine's architecture is the profile's; an artifact's size binds everywhere.
    """
    checks: list[BudgetCheck] = []
    limits = profile.budgets
    for result in document["results"]:
        here = result["environment"]["machine"] == profile.hardware.arch
        name = result["artifact"]
        if limits.latency_ms is not None:
            p90_ms = result["latency_ns"]["p90"]["value"] / 1e6
            checks.append(BudgetCheck(name, "latency", p90_ms, limits.latency_ms, here))
        if limits.peak_memory_bytes is not None:
            checks.append(BudgetCheck(name, "memory", result["peak_memory_bytes"], limits.peak_memory_bytes, here))
        if limits.size_bytes is not None:
            checks.append(BudgetCheck(name, "size", result["size_bytes"], limits.size_bytes, binding=True))
    return checks


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms"
