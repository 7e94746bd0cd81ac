"""A histogram that adapts to a stream of values in bounded memory, and whose result does not depend on their order.

Bins are [i*w, (i+1)*w) with a width w that is a power of two. When a value falls outside, w doubles and pairs of bins merge,
which is exact because bin boundaries of the wider grid are boundaries of the finer one. The final width is the smallest power
of two (above float32's own resolution) for which the whole range fits, however the values arrived, so histograms of parts add
up to that of the whole.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from runtimes.session import Array

BINS = 2048
# A bin narrower than float32's spacing at the largest value holds nothing that a wider one would not.
_MANTISSA_BITS = 24
_SMALLEST_EXPONENT = -149
_LARGEST_FACTOR = 100  # as a power of two; float32 ends at 127
_CHUNK = 1 << 15  # values counted at a time: what they need in between stays in the cache


class Histogram:
    """``counts``: [span] int64; bin j covers [(start + j) * width, (start + j + 1) * width)."""

    def __init__(self) -> None:
        self._exponent = _SMALLEST_EXPONENT
        self._start = 0
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self.low = math.inf
        self.high = -math.inf

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self._exponent)

    @property
    def counts(self) -> NDArray[np.int64]:
        return self._counts

    @property
    def centers(self) -> NDArray[np.float64]:
        """[span] float64; the outermost centers are moved inside the observed range."""
        centers: NDArray[np.float64] = (self._start + np.arange(len(self._counts)) + 0.5) * np.float64(self.width)
        return np.asarray(np.clip(centers, self.low, self.high), np.float64)

    @property
    def edges(self) -> NDArray[np.float64]:
        """[span + 1] float64."""
        return np.asarray((self._start + np.arange(len(self._counts) + 1)) * self.width, np.float64)

    def share_outside(self, low: float, high: float) -> float:
        """Share of the values outside [low, high], to within a bin at either end."""
        outside = self.counts[(self.centers < low) | (self.centers > high)].sum()
        return float(outside / max(int(self.counts.sum()), 1))

    def update(self, values: Array) -> None:
        """Count ``values`` (finite, any shape, float32)."""
        if not values.size:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        exponent = _exponent_for(self.low, self.high)
        self._cover(exponent, math.floor(math.ldexp(self.low, -exponent)), math.floor(math.ldexp(self.high, -exponent)))
        flat = values.reshape(-1)
        for begin in range(0, flat.size, _CHUNK):
            indices = _bins(flat[begin : begin + _CHUNK], exponent, self._start)
            self._counts += np.bincount(indices, minlength=len(self._counts))

    def _cover(self, exponent: int, first: int, last: int) -> None:
        """Re-bin to width 2**exponent and cover the indices first..last."""
        grown = np.zeros(last - first + 1, np.int64)
        if len(self._counts):
            old = (self._start + np.arange(len(self._counts))) >> (exponent - self._exponent)
            np.add.at(grown, old - first, self._counts)
        self._exponent, self._start, self._counts = exponent, first, grown


def _bins(values: Array, exponent: int, start: int) -> NDArray[np.intp]:
    """floor(value / 2**exponent) - start of every value, [count].

    float32 suffices where the factor is a normal number and nothing can underflow: multiplying by a power of two is exact, and no
    quotient exceeds 2**_MANTISSA_BITS. That is eight times as fast as float64.
    """
    if values.dtype == np.float32 and -_LARGEST_FACTOR <= exponent <= 0:
        scaled = values * np.float32(math.ldexp(1.0, -exponent))
        np.floor(scaled, out=scaled)
        scaled -= np.float32(start)
        return scaled.astype(np.intp)
    return np.asarray(np.floor(np.ldexp(values.astype(np.float64), -exponent)).astype(np.intp) - start, np.intp)


def _exponent_for(low: float, high: float) -> int:
    """The smallest exponent whose grid covers low..high with at most BINS bins and is no finer than float32 at its far end."""
    far = max(abs(low), abs(high))
    finest = max(math.frexp(far)[1] - _MANTISSA_BITS, _SMALLEST_EXPONENT) if far else _SMALLEST_EXPONENT
    span = high - low
    exponent = max(finest, math.frexp(span / BINS)[1] - 1) if span else finest
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent
