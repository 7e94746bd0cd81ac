"""Numbers that compare two sets of outputs: parity, agreement, quantization steps, accuracy with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from runtimes.session import Array

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal distribution


@dataclass(frozen=True, slots=True)
class Parity:
    """How far ``outputs`` are from the source's.

    ``relative_error`` is max_abs_error over the reference's value range (max - min) of the same tensor. ``snr_db`` is the lowest
    over the outputs; infinite when all are equal. ``agreement`` is the share of samples with the same argmax over the last axis
    of the first output, None when that axis has fewer than two entries. ``finite`` is False if any output holds NaN or infinity.
    """

    max_abs_error: float
    relative_error: float
    snr_db: float
    agreement: float | None
    worst_tensor: str
    finite: bool
    samples: int


def parity(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> Parity:
    """Compare outputs with the reference's, tensor by tensor (same names and shapes, samples on axis 0).

    Raises ValueError if names or shapes differ: that is never a numeric question.
    """
    if set(outputs) != set(reference):
        raise ValueError(f"outputs {sorted(outputs)} are not the reference's {sorted(reference)}")
    worst, errors, snrs, finite = "", (-1.0, -1.0), [], True
    for name, expected in reference.items():
        actual = outputs[name]
        if actual.shape != expected.shape:
            raise ValueError(f"output {name!r} has shape {actual.shape}, the source's has {expected.shape}")
        finite = finite and bool(np.isfinite(actual).all())
        absolute, relative, snr = _tensor_error(actual, expected)
        snrs.append(snr)
        if relative > errors[1]:
            worst, errors = name, (absolute, relative)
    first = next(iter(reference))
    return Parity(
        max_abs_error=errors[0],
        relative_error=errors[1],
        snr_db=min(snrs),
        agreement=agreement(outputs[first], reference[first]),
        worst_tensor=worst,
        finite=finite,
        samples=len(reference[first]),
    )


def _tensor_error(actual: Array, expected: Array) -> tuple[float, float, float]:
    """Absolute error, error relative to the expected range, and SNR in dB. Non-finite values count as infinitely wrong."""
    if not np.isfinite(actual).all():
        return math.inf, math.inf, -math.inf
    wide = expected.astype(np.float64)
    difference = actual.astype(np.float64) - wide
    absolute = float(np.abs(difference).max(initial=0.0))
    span = float(np.ptp(wide)) if wide.size else 0.0
    scale = span if span > 0 else float(np.abs(wide).max(initial=0.0)) or 1.0
    return absolute, absolute / scale, snr_db(wide, difference)


def snr_db(signal: Array, noise: Array) -> float:
    """10 log10(sum(signal^2) / sum(noise^2)); infinite for no noise."""
    power, error = float(np.square(signal).sum()), float(np.square(noise).sum())
    if error == 0:
        return math.inf
    return 10 * math.log10(power / error) if power > 0 else -math.inf


def agreement(outputs: Array, reference: Array) -> float | None:
    """Share of samples whose argmax over the last axis is the same; None where there is nothing to choose from."""
    if reference.ndim < 2 or reference.shape[-1] < 2:
        return None
    return float((outputs.argmax(-1) == reference.argmax(-1)).mean())


@dataclass(frozen=True, slots=True)
class StepAgreement:
    """How far two integer artifacts are apart, in steps of the output's scale. Shares are of all output elements.

    ``codes_per_step``: how many codes make a step: 1, more for codes that are finer than kernels compute.
    """

    first: str
    second: str
    max_steps: float
    share_equal: float
    share_within_one: float
    share_within_two: float
    codes_per_step: int = 1


def step_agreement(
    first: tuple[str, Mapping[str, Array]],
    second: tuple[str, Mapping[str, Array]],
    scales: Mapping[str, float],
    codes_per_step: int = 1,
) -> StepAgreement:
    """Compare two artifacts' outputs in quantization steps; ``scales`` holds the scale of each quantized output.

    Half a step of slack absorbs the float rounding of dequantization: real differences are whole steps.
    """
    steps = np.concatenate(
        [
            np.abs(first[1][n].astype(np.float64) - second[1][n]).ravel() / (scale * codes_per_step)
            for n, scale in scales.items()
        ]
    )
    steps = np.where(np.isfinite(steps), np.rint(steps), np.inf)
    return StepAgreement(
        first[0],
        second[0],
        max_steps=float(steps.max(initial=0.0)),
        share_equal=float((steps < 0.5).mean()),
        share_within_one=float((steps < 1.5).mean()),
        share_within_two=float((steps < 2.5).mean()),
        codes_per_step=codes_per_step,
    )


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of correct answers with its 95 % Wilson score interval."""

    value: float
    low: float
    high: float
    correct: int
    total: int


def accuracy(outputs: Array, labels: Array) -> Accuracy:
    """Top-1 accuracy. ``outputs``: [samples, classes]; ``labels``: [samples], integer."""
    correct = int((outputs.reshape(len(labels), -1).argmax(-1) == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    return Accuracy(correct / len(labels), low, high, correct, len(labels))


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion. Source: E. B. Wilson (1927), JASA 22, 209-212."""
    share, z2 = successes / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class Flips:
    """Answers that changed against the source on the same samples.

    ``lost``: right became wrong; ``gained``: wrong became right; ``p_value``: exact two-sided McNemar test.
    """

    lost: int
    gained: int
    p_value: float
    total: int

    @property
    def drop_points(self) -> float:
        """Accuracy lost, in percentage points; negative when it rose."""
        return 100 * (self.lost - self.gained) / self.total


def flips(outputs: Array, reference: Array, labels: Array) -> Flips:
    """Paired comparison of two models' answers. ``outputs``, ``reference``: [samples, classes]."""
    count = len(labels)
    now = outputs.reshape(count, -1).argmax(-1) == labels
    before = reference.reshape(count, -1).argmax(-1) == labels
    lost, gained = int((before & ~now).sum()), int((now & ~before).sum())
    return Flips(lost, gained, mcnemar_p(lost, gained), count)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided McNemar test: a binomial test with p = 1/2 on the discordant pairs (Q. McNemar 1947)."""
    discordant = lost + gained
    tail: float = sum(math.comb(discordant, k) for k in range(min(lost, gained) + 1)) / 2**discordant
    return min(1.0, 2.0 * tail)
