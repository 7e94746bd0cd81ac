"""Observers: from a stream of an activation's values to the range that int8 should cover. OBSERVERS is the registry.

Every range that leaves here contains zero: padding, ReLU and zero points need it to be exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.calibration.histogram import Histogram
from profiles.registry import Registry
from runtimes.session import Array


@dataclass(frozen=True, slots=True)
class Range:
    """What was seen (``observed_low`` to ``observed_high``) and what should be covered (``low`` <= 0 <= ``high``).

    ``clipped_share``: share of the seen values outside the covered range.
    """

    low: float
    high: float
    observed_low: float
    observed_high: float
    clipped_share: float = 0.0

    def __post_init__(self) -> None:
        if not self.low <= 0.0 <= self.high:
            raise ValueError(f"range [{self.low}, {self.high}] does not contain zero")


class Observer(Protocol):
    """Sees every value of one activation, in bounded memory.

    ``result`` must not depend on the order of the updates, except where the observer's very definition does (moving averages).
    """

    def update(self, values: Array) -> None:
        """``values``: any shape, float32, finite."""
        ...

    def result(self) -> Range: ...


OBSERVERS: Registry[Callable[[], Observer]] = Registry(
    "observer", how_to_add="Add a class with update and result to compiler/calibration/observers.py and register it."
)


class MinMax:
    """Covers everything that was seen."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def update(self, values: Array) -> None:
        if values.size:
            self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def result(self) -> Range:
        if self._low > self._high:
            raise ValueError("the observer saw nothing")
        return Range(min(self._low, 0.0), max(self._high, 0.0), self._low, self._high)


class _OverHistogram:
    """Shared by observers that choose a range after seeing the distribution; several may look at one histogram."""

    def __init__(self, histogram: Histogram | None = None) -> None:
        self._histogram = histogram or Histogram()

    def update(self, values: Array) -> None:
        self._histogram.update(values)

    def result(self) -> Range:
        seen = self._histogram
        if not len(seen.counts):
            raise ValueError("the observer saw nothing")
        low, high = self.choose(seen)
        low, high = min(max(low, seen.low), 0.0), max(min(high, seen.high), 0.0)
        return Range(low, high, seen.low, seen.high, seen.share_outside(low, high))

    def choose(self, seen: Histogram) -> tuple[float, float]:
        raise AssertionError("every subclass chooses")


class Percentile(_OverHistogram):
    """Leaves out the share ``1 - coverage`` of the values at either end together (half of it at each)."""

    coverage = 0.9999

    def choose(self, seen: Histogram) -> tuple[float, float]:
        tail = (1.0 - self.coverage) / 2.0 * float(seen.counts.sum())
        cumulative = np.cumsum(seen.counts)
        first = int(np.searchsorted(cumulative, tail, side="right"))
        last = int(np.searchsorted(cumulative, cumulative[-1] - tail, side="left"))
        return float(seen.edges[first]), float(seen.edges[last + 1])


class MeanSquaredError(_OverHistogram):
    """The range with the least expected squared error of 8-bit rounding and clipping together.

    Both ends are shrunk in turn over a grid of shares of the seen range until neither moves; the error is evaluated on
    the histogram: sum(count * (center - dequantize(quantize(center)))**2).
    """

    # Fine where ordinary activations lie, and far enough down for a single outlier a hundred times the rest.
    shares = np.concatenate([np.linspace(1.0, 0.5, 51), np.geomspace(0.49, 1 / 256, 40)])

    def choose(self, seen: Histogram) -> tuple[float, float]:
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        centers, counts = seen.centers, seen.counts
        for _ in range(4):
            before = (low, high)
            if seen.high > 0:
                high = min(seen.high * self.shares, key=lambda h: expected_error(centers, counts, low, float(h)))
            if seen.low < 0:
                low = min(seen.low * self.shares, key=lambda e: expected_error(centers, counts, float(e), high))
            if (low, high) == before:
                break
        return float(low), float(high)


class MovingAverage:
    """The mean over runs of each run's extrema, which a single odd sample moves little.

    Plain for the first 100 runs, then exponential with weight 0.01: m += max(1 / n, 0.01) * (x - m).
    Source: the weight is that of PyTorch's MovingAverageMinMaxObserver, which however starts from its first run alone.
    """

    weight = 0.01

    def __init__(self) -> None:
        self._runs = 0
        self._low = self._high = 0.0
        self._seen = MinMax()
        self._tail = Histogram()

    def update(self, values: Array) -> None:
        if not values.size:
            return
        self._seen.update(values)
        self._tail.update(values)
        self._runs += 1
        share = max(1 / self._runs, self.weight)
        self._low += share * (float(values.min()) - self._low)
        self._high += share * (float(values.max()) - self._high)

    def result(self) -> Range:
        seen = self._seen.result()
        low, high = min(self._low, 0.0), max(self._high, 0.0)
        return Range(low, high, seen.observed_low, seen.observed_high, self._tail.share_outside(low, high))


class Entropy(_OverHistogram):
    """The range whose 8-bit codes keep most of the distribution: least Kullback-Leibler divergence.

    P is the histogram with what lies outside moved to the outermost bins, Q what is left of P's inside when all values of one code
    count alike: sum over bins of p * log(p / q). Both ends are shrunk in turn, as for the squared error.
    Source: S. Migacz, "8-bit Inference with TensorRT" (2017), made asymmetric; zeros, which ReLU makes by the million and every
    code keeps exactly, are left out.
    """

    shares = np.concatenate([np.linspace(1.0, 0.5, 26), np.geomspace(0.48, 1 / 256, 20)])

    def choose(self, seen: Histogram) -> tuple[float, float]:
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        counts = np.where((seen.edges[:-1] <= 0) & (seen.edges[1:] > 0), 0, seen.counts)
        if not counts.any():
            return low, high
        for _ in range(3):
            before = (low, high)
            if seen.high > 0:
                high = min(seen.high * self.shares, key=lambda h: divergence(seen.centers, counts, low, float(h)))
            if seen.low < 0:
                low = min(seen.low * self.shares, key=lambda e: divergence(seen.centers, counts, float(e), high))
            if (low, high) == before:
                break
        return float(low), float(high)


def divergence(centers: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float) -> float:
    """KL(P || Q) in nats, see Entropy; infinite where nothing lies inside."""
    scale = (high - low) / 255.0
    inside = (centers >= low) & (centers <= high)
    if scale == 0.0 or not counts[inside].any():
        return float(np.inf)
    kept = counts[inside].astype(np.float64)
    codes = (np.rint(centers[inside] / scale) - np.rint(low / scale)).astype(np.int64)
    alive = (kept > 0).astype(np.float64)
    totals, bins = np.bincount(codes, kept), np.bincount(codes, alive)
    q = np.divide(totals, bins, out=np.zeros_like(totals), where=bins > 0)[codes] * alive
    p = kept.copy()
    p[0] += counts[centers < low].sum()
    p[-1] += counts[centers > high].sum()
    where = p > 0
    # A bin that only clipping filled has no code's share of its own; one count keeps the logarithm finite.
    ratio = (p[where] / p.sum()) / np.maximum(q[where], 1.0) * q.sum()
    return float((p[where] / p.sum() * np.log(ratio)).sum())


def expected_error(centers: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float) -> float:
    """Squared error, summed over ``counts`` values at ``centers``, of 256 levels between ``low`` and ``high``."""
    scale = (high - low) / 255.0
    if scale == 0.0:
        return float(np.dot(counts, centers**2))
    zero = np.rint(-low / scale)
    levels = np.clip(np.rint(centers / scale) + zero, 0, 255)
    return float(np.dot(counts, (centers - (levels - zero) * scale) ** 2))


class Joint:
    """Several observers of one activation that share one histogram, so that all of them cost little more than one."""

    def __init__(self, names: Sequence[str]) -> None:
        self._histogram = Histogram()
        self._alone: dict[str, Observer] = {}
        self._sharing: dict[str, _OverHistogram] = {}
        for name in names:
            one = OBSERVERS.get(name)()
            if isinstance(one, _OverHistogram):
                self._sharing[name] = type(one)(self._histogram)
            else:
                self._alone[name] = one

    def update(self, values: Array) -> None:
        if self._sharing:
            self._histogram.update(values)
        for one in self._alone.values():
            one.update(values)

    def results(self) -> dict[str, Range]:
        """By observer's name."""
        return {name: one.result() for name, one in (self._sharing | self._alone).items()}


OBSERVERS.add("min-max", MinMax)
OBSERVERS.add("percentile", Percentile)
OBSERVERS.add("mse", MeanSquaredError)
OBSERVERS.add("moving-average", MovingAverage)
OBSERVERS.add("entropy", Entropy)
