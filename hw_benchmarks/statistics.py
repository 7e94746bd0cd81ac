"""Percentiles with their uncertainty, and differences with a noise band."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Percentile:
    """``value`` at ``share``, with a distribution-free 95 % interval; None where the sample is too small for one."""

    share: float
    value: float
    low: float | None
    high: float | None


def percentile(values: Sequence[float], share: float) -> Percentile:
    """Nearest-rank percentile and its interval from order statistics.

    The number of values below the true percentile is binomial(n, share); its normal approximation gives the ranks of the bounds.
    Source: G. J. Hahn and W. Q. Meeker, Statistical Intervals (1991), section 5.2. Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values")
    ordered, count = sorted(values), len(values)
    centre, half = count * share, Z_95 * math.sqrt(count * share * (1 - share))
    low, high = math.floor(centre - half) - 1, math.ceil(centre + half)
    return Percentile(
        share,
        ordered[min(count - 1, max(0, math.ceil(centre) - 1))],
        ordered[low] if low >= 0 else None,
        ordered[high] if high < count else None,
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """``ratio`` new / base of the median latency; ``noise`` is the relative spread between repeats of the same thing."""

    name: str
    base_ns: float
    new_ns: float
    ratio: float
    noise: float
    verdict: str  # "faster", "slower", "same"


def compare(name: str, base: Sequence[float], new: Sequence[float], threshold: float) -> Comparison:
    """Judge two sets of per-repeat medians (nanoseconds, one per fresh process).

    A difference counts when it exceeds ``threshold`` and the noise band, which is the larger of the two sets' own spreads
    ((max - min) / median): what differs between runs of the same file says nothing about a different file. And the two sets must
    not overlap: by chance alone that happens in 1 of 20 pairs of three repeats, 1 of 252 of five (Mann and Whitney 1947).
    """
    before, after = statistics.median(base), statistics.median(new)
    noise = max((max(s) - min(s)) / statistics.median(s) for s in (base, new))
    ratio = after / before
    band = 1 + max(threshold, noise)
    slower, faster = ratio > band and min(new) > max(base), ratio < 1 / band and max(new) < min(base)
    verdict = "slower" if slower else "faster" if faster else "same"
    return Comparison(name, before, after, ratio, noise, verdict)
