"""Observers: from a stream of an activation's values to the range that int8 should cover. OBSERVERS is the registry.

Every range that leaves here contains zero: padding, ReLU and zero points need it to be exact.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """Sees every value of one activation, in bounded memory. ``result`` must not depend on the order of the updates."""

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
    """Shared by observers that choose a range after seeing the distribution."""

    def __init__(self) -> None:
        self._histogram = Histogram()

    def update(self, values: Array) -> None:
        self._histogram.update(values)

    def result(self) -> Range:
        seen = self._histogram
        if not len(seen.counts):
            raise ValueError("the observer saw nothing")
        low, high = self.choose(seen)
        low, high = min(max(low, seen.low), 0.0), max(min(high, seen.high), 0.0)
        outside = seen.counts[(seen.centers < low) | (seen.centers > high)].sum()
        return Range(low, high, seen.low, seen.high, float(outside / seen.counts.sum()))

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


def expected_error(centers: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float) -> float:
    """Squared error, summed over ``counts`` values at ``centers``, of 256 levels between ``low`` and ``high``."""
    scale = (high - low) / 255.0
    if scale == 0.0:
        return float(np.dot(counts, centers**2))
    zero = np.rint(-low / scale)
    levels = np.clip(np.rint(centers / scale) + zero, 0, 255)
    return float(np.dot(counts, (centers - (levels - zero) * scale) ** 2))


OBSERVERS.add("min-max", MinMax)
OBSERVERS.add("percentile", Percentile)
OBSERVERS.add("mse", MeanSquaredError)
