"""What a later verification of one artifact found."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.verification.metrics import Parity


@dataclass(frozen=True, slots=True)
class Verification:
    """One artifact on one compute unit of one machine.

    ``parity`` is against the source, None where it failed to run; ``reason`` reads as a sentence. ``tolerance``: the largest error
    that is allowed. ``beside``: the largest error relative to the output's range against the first unit of the same artifact.
    """

    artifact: str
    unit: str | None
    runtime: str
    runtime_version: str
    evidence: str
    machine: str
    latency_ms: float
    parity: Parity | None
    beside: float | None
    tolerance: float
    ok: bool
    reason: str
