"""Gates: the checks that turn a report into an exit code. Pure functions over figures that were measured."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.verification.metrics import Flips, Parity, StepAgreement
from profiles.schema import Precision
from profiles.units import format_bytes

# Largest error relative to the output's range that lowering alone may cause. float32: accumulation order only. float16: 2**-11
# relative rounding per operation; 1e-2 leaves room for some tens of layers (0.1 % to 1 % was measured on eight nets).
LOWERING_TOLERANCE = {Precision.FP32: 1e-4, Precision.FP16: 1e-2}
MIN_SHARE_WITHIN_TWO_STEPS = 0.99
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


def lowering_gate(artifact: str, precision: Precision, parity: Parity) -> Gate | None:
    """Float artifacts must compute what the float hub computes. Quantized ones are held against each other and by accuracy."""
    limit = LOWERING_TOLERANCE.get(precision)
    if limit is None:
        return None
    ok = parity.relative_error <= limit
    reason = f"{parity.worst_tensor!r} is off by {parity.relative_error:.2g} of its range; {limit:g} is allowed."
    return Gate("parity", artifact, ok, parity.relative_error, limit, reason)


def accuracy_gate(artifact: str, flips: Flips, max_drop_points: float) -> Gate:
    """Fails when more is lost than allowed, unless the paired flips cannot be told from chance (McNemar's test)."""
    drop = flips.drop_points
    noise = drop > max_drop_points and flips.p_value >= SIGNIFICANCE
    ok = drop <= max_drop_points or noise
    reason = f"{flips.lost} answers lost and {flips.gained} gained of {flips.total}: {drop:+.2f} points lost"
    reason += f", {max_drop_points:g} allowed" + (f"; within noise (p = {flips.p_value:.2f})." if noise else ".")
    return Gate("max-drop", artifact, ok, drop, max_drop_points, reason)


def sqnr_gate(artifact: str, parity: Parity, limit_db: float) -> Gate:
    reason = f"The worst output carries {parity.snr_db:.1f} dB over the noise; {limit_db:g} dB are required."
    return Gate("min-sqnr", artifact, parity.snr_db >= limit_db, parity.snr_db, limit_db, reason)


def answers_gate(artifact: str, parity: Parity, limit: float) -> Gate | None:
    """How often the largest element of the first output is the source's; None for outputs that are no scores."""
    if parity.agreement is None:
        return None
    reason = f"{parity.agreement:.2%} of the answers are the source's; {limit:.2%} are required."
    return Gate("min-agreement", artifact, parity.agreement >= limit, parity.agreement, limit, reason)


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
