"""An observer per channel: extrema, mean and variance of every channel of an activation, in one pass and bounded memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.calibration.observers import Range
from runtimes.session import Array

Vector = NDArray[np.float64]


class ChannelObserver:
    """``low``, ``high``, ``mean``, ``variance``: [channels] float64.

    Parts are merged exactly, whatever their order, up to float64's rounding. Source: T. Chan, G. Golub, R. LeVeque, "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), equation 2.1.
    """

    def __init__(self, axis: int = 1) -> None:
        self._axis = axis
        self.count = 0  # of values per channel
        self.low = self.high = self.mean = self._squares = np.zeros(0)

    def update(self, values: Array) -> None:
        """``values``: [..., channels at ``axis``, ...], float32, finite."""
        rows = np.moveaxis(values, self._axis, 0).reshape(values.shape[self._axis], -1)
        if not rows.size:
            return
        count, mean = rows.shape[1], rows.mean(axis=1, dtype=np.float64)
        squares = ((rows - mean[:, None]) ** 2).sum(axis=1)
        low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
        if not self.count:
            self.count, self.low, self.high, self.mean, self._squares = count, low, high, mean, squares
            return
        total, apart = self.count + count, mean - self.mean
        self._squares = self._squares + squares + apart**2 * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.count = total

    @property
    def variance(self) -> Vector:
        """The population's."""
        return np.asarray(self._squares / max(self.count, 1), np.float64)

    @property
    def peak(self) -> Vector:
        """max|x|."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)), np.float64)

    def ranges(self) -> list[Range]:
        """What min-max would give each channel. Raises ValueError if nothing was seen."""
        if not self.count:
            raise ValueError("the observer saw nothing")
        pairs = zip(self.low.tolist(), self.high.tolist(), strict=True)
        return [Range(min(low, 0.0), max(high, 0.0), low, high) for low, high in pairs]
