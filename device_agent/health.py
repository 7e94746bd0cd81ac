"""When a release on probation is good, and when it goes: a pure rule over what was seen."""

from typing import Literal, NamedTuple

from device_agent.config import HealthConfig
from device_agent.engine import Counts
from device_agent.slots import State


class Diagnosis(NamedTuple):
    """What to do with the active release, and why."""

    action: Literal["wait", "confirm", "roll-back"]
    reason: str


class Limits(NamedTuple):
    """What the release itself promises: its latency limit, and what its answers have drifted in beyond its critical limit."""

    latency_ms: float | None = None
    drifted: str | None = None


_NO_LIMITS = Limits()


def at_start(state: State, policy: HealthConfig) -> Diagnosis:
    """Judge a crash loop; ``state`` already counts this start."""
    if state.active is None or state.confirmed:
        return Diagnosis("wait", "nothing is on probation")
    if state.boots > policy.max_boots:
        return Diagnosis("roll-back", f"{state.boots} starts without lasting to confirmation")
    return Diagnosis("wait", f"start {state.boots} of {policy.max_boots} on probation")


def in_service(
    state: State, counts: Counts, age_s: float, policy: HealthConfig, limits: Limits = _NO_LIMITS
) -> Diagnosis:
    """Judge a running release.

    Args:
        counts: requests since it was loaded; refused ones are the clients' fault and do not count.
        age_s: seconds since it was loaded.
    """
    if state.active is None or state.confirmed:
        return Diagnosis("wait", "nothing is on probation")
    rate = counts.failed / counts.answered if counts.answered else 0.0
    if counts.answered >= policy.min_requests and rate > policy.max_error_rate:
        return Diagnosis("roll-back", f"{counts.failed} of {counts.answered} requests failed")
    if limits.latency_ms is not None and counts.answered >= policy.min_requests and counts.p95_ms > limits.latency_ms:
        return Diagnosis(
            "roll-back", f"p95 latency is {counts.p95_ms:.1f} ms, the release allows {limits.latency_ms:g}"
        )
    if limits.drifted is not None:
        return Diagnosis("roll-back", f"{limits.drifted} has drifted beyond the release's critical limit")
    if age_s < policy.confirm_after_s or counts.ok < policy.confirm_requests:
        return Diagnosis("wait", f"{age_s:.0f} s and {counts.ok} good requests so far")
    if rate > policy.max_error_rate:
        return Diagnosis("wait", f"{counts.failed} of {counts.answered} requests failed")
    return Diagnosis("confirm", f"healthy for {age_s:.0f} s over {counts.ok} requests")
