"""Gates: the checks that turn a report into an exit code. Pure functions over figures that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compiler.verification.half_bound import HalfBound
from compiler.verification.metrics import Flips, Parity, StepAgreement
from profiles.schema import Precision
from profiles.units import format_bytes
from runtimes.session import Array

# Largest error relative to the output's range that lowering alone may cause. float32: accumulation order only. float16: 2**-11
# relative rounding per operation; 1e-2 leaves room for some tens of layers (0.1 % to 1 % was measured on eight nets), and is the
# most that a Core ML package may lose, whose own roundings give its limit (half_gate). Artifacts whose weights alone are compressed
# compute in one of the two and are held against their own quantized hub.
LOWERING_TOLERANCE = {Precision.FP32: 1e-4, Precision.FP16: 1e-2}
MIN_SHARE_WITHIN_TWO_STEPS = 0.99
SHARES_SUM = 0.01  # float16 shares are off by a few 2**-11 each
SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Gate:
    """One check of one artifact. ``limit`` and ``value`` share a unit; ``reason`` reads as a sentence."""

    name: str
    artifact: str
    ok: bool
    value: float
    limit: float
    reason: str


def finite_gate(artifact: str, parity: Parity) -> Gate:
    reason = "All outputs are finite." if parity.finite else f"Output {parity.worst_tensor!r} holds NaN or infinity."
    return Gate("finite", artifact, parity.finite, float(not parity.finite), 0.0, reason)


def invariants_gate(artifact: str, outputs: Mapping[str, Array], truth: Mapping[str, Array]) -> Gate:
    """What must hold whatever the precision: an output that varies with the input still does, and shares still sum to 1.

    Shares are outputs of the source that are positive and sum to 1 along the last axis; each may be off by half a step of 1/256,
    the coarsest that any integer kernel gives.
    """
    broken = []
    for name, want in truth.items():
        got = outputs[name]
        if len(want) > 1 and np.ptp(want, axis=0).max(initial=0) > 0 and not np.ptp(got, axis=0).any():
            broken.append(f"{name!r} is the same for every input")
        if _are_shares(want):
            off = float(np.abs(got.astype(np.float64).sum(axis=-1) - 1).max())
            if not off <= max(SHARES_SUM, want.shape[-1] / 512):
                broken.append(f"{name!r} sums to 1 within {off:.2g} only")
    reason = f"Broken: {'; '.join(broken)}." if broken else "Outputs vary with the input, and shares sum to 1."
    return Gate("invariants", artifact, not broken, float(len(broken)), 0.0, reason)


def _are_shares(values: Array) -> bool:
    if values.dtype.kind != "f" or values.ndim < 2 or values.shape[-1] < 2 or (values < 0).any():
        return False
    return bool(np.abs(values.astype(np.float64).sum(axis=-1) - 1).max(initial=0) < 1e-3)


def lowering_gate(artifact: str, precision: Precision, parity: Parity, half: bool = False) -> Gate | None:
    """What computes in float must compute what its hub computes. What computes in integers is held by agreement and accuracy.

    ``half``: whether an artifact whose weights alone are compressed computes in float16.
    """
    if precision.weights_only:
        precision = Precision.FP16 if half else Precision.FP32
    limit = LOWERING_TOLERANCE.get(precision)
    if limit is None:
        return None
    ok = parity.relative_error <= limit
    reason = f"{parity.worst_tensor!r} is off by {parity.relative_error:.2g} of its range; {limit:g} is allowed."
    return Gate("parity", artifact, ok, parity.relative_error, limit, reason)


def half_limit(found: HalfBound) -> float:
    """What a float16 package may lose: what its roundings may add up to, and never more than the fixed tolerance."""
    return min(found.bound, LOWERING_TOLERANCE[Precision.FP16])


def half_gate(artifact: str, found: HalfBound) -> Gate:
    """A float16 package computes what its hub computes, within what the roundings in it may add up to (ADR 27)."""
    limit = half_limit(found)
    explained = f"the program's float16 roundings may add up to {found.bound:.2g}"
    if limit < found.bound:
        explained += f", of which {limit:g} is allowed"
    reason = f"{found.tensor!r} is off by {found.error:.2g} of its range; {explained}."
    return Gate("parity", artifact, found.error <= limit, found.error, limit, reason)


def sizes_gate(artifact: str, precision: Precision, found: tuple[float, str], half: bool = False) -> Gate:
    """An artifact of flexible sizes computes what its hub does at the ends of what it takes. Integers have no gate but to run."""
    if precision.weights_only:
        precision = Precision.FP16 if half else Precision.FP32
    limit = LOWERING_TOLERANCE.get(precision, 1.0)
    return Gate("sizes", artifact, found[0] <= limit, found[0], limit, found[1])


def accuracy_gate(artifact: str, flips: Flips, max_drop_points: float) -> Gate:
    """Fails when more is lost than allowed, unless the paired flips cannot be told from chance (McNemar's test)."""
    drop = flips.drop_points
    noise = drop > max_drop_points and flips.p_value >= SIGNIFICANCE
    ok = drop <= max_drop_points or noise
    reason = f"{flips.lost} answers lost and {flips.gained} gained of {flips.total}: {drop:+.2f} points lost"
    reason += f", {max_drop_points:g} allowed" + (f"; within noise (p = {flips.p_value:.2f})." if noise else ".")
    return Gate("max-drop", artifact, ok, drop, max_drop_points, reason)


def sqnr_gate(artifact: str, parity: Parity, least_db: float) -> Gate:
    reason = (
        f"{parity.snr_db:.1f} dB against the source, {least_db:g} dB asked; most is lost at {parity.worst_tensor!r}."
    )
    return Gate("min-sqnr", artifact, parity.snr_db >= least_db, parity.snr_db, least_db, reason)


def answers_gate(artifact: str, parity: Parity, least: float) -> Gate:
    """Fails too where there is no argmax to compare: what was asked for could not be checked."""
    if parity.agreement is None:
        reason = "The first output has nothing to choose from, so answers cannot be compared."
        return Gate("min-agreement", artifact, False, 0.0, least, reason)
    reason = f"{parity.agreement:.2%} of {parity.samples} answers are the source's, {least:.2%} asked."
    return Gate("min-agreement", artifact, parity.agreement >= least, parity.agreement, least, reason)


def saturation_gate(artifact: str, shares: Mapping[str, float], limit: float) -> Gate:
    """``shares``: per node the share of calibration values outside what its codes express; nodes without any are left out."""
    worst = max(shares, key=lambda node: shares[node], default=None)
    share = 0.0 if worst is None else shares[worst]
    above = sum(1 for one in shares.values() if one > limit)
    reason = (
        "No value saturates."
        if worst is None
        else f"{share:.2%} of the values saturate at {worst!r}, {limit:.2%} allowed"
    )
    reason += f"; {above} activations lie above that." if share > limit else "." if worst is not None else ""
    return Gate("max-saturation", artifact, share <= limit, share, limit, reason)


def size_gate(artifact: str, size_bytes: int, limit_bytes: int) -> Gate:
    reason = f"{format_bytes(size_bytes)}, {format_bytes(limit_bytes)} allowed."
    return Gate("size", artifact, size_bytes <= limit_bytes, size_bytes, limit_bytes, reason)


def agreement_gate(pair: StepAgreement) -> Gate:
    """The int8 artifacts come from one specification: on nearly all outputs they are within two quantization steps."""
    share = pair.share_within_two
    reason = (
        f"{share:.2%} of the outputs lie within two steps of {pair.second}'s; at most {pair.max_steps:g} steps apart."
    )
    ok = share >= MIN_SHARE_WITHIN_TWO_STEPS
    return Gate("agreement", pair.first, ok, share, MIN_SHARE_WITHIN_TWO_STEPS, reason)
