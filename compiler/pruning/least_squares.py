"""Streaming ridge regression: fits a consumer's weights to what the layer answered before, in bounded memory.

    minimise over V   |A V - Y|^2 + lambda |V - V0|^2

A [rows, columns] are the inputs of the pruned layer (unfolded for a convolution, a column of ones last if there is a
bias), Y [rows, outputs] the answers of the whole layer, V0 the weights after the cut. Only A'A, A'Y and |Y|^2 are kept,
in float64. Rows are split in two: one part fits, the other chooses lambda, "leave V0 alone" included: no repair that does
not help on rows it has not seen is ever applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# Relative to the mean diagonal of A'A.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Normal:
    """The sufficient statistics of one set of rows."""

    def __init__(self, columns: int, outputs: int) -> None:
        self.gram, self.cross = np.zeros((columns, columns)), np.zeros((columns, outputs))
        self.energy, self.rows = 0.0, 0

    def add(self, inputs: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
        """inputs: [rows, columns], targets: [rows, outputs]."""
        a, y = inputs.astype(np.float64), targets.astype(np.float64)
        self.gram += a.T @ a
        self.cross += a.T @ y
        self.energy += float((y * y).sum())
        self.rows += len(a)

    def error(self, solution: Matrix) -> float:
        """|A V - Y|^2 = |Y|^2 - 2 <V, A'Y> + <V, A'A V>, relative to |Y|^2."""
        squares = (
            self.energy - 2 * float((solution * self.cross).sum()) + float((solution * (self.gram @ solution)).sum())
        )
        return max(squares, 0.0) / max(self.energy, 1e-30)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """``solution`` [columns, outputs]; errors are relative to the target's energy, on rows that the fit did not see."""

    solution: Matrix
    before: float
    after: float
    ridge: float | None  # None: the start was best and stays


def fit(train: Normal, held_out: Normal, start: Matrix, ridges: Sequence[float] = RIDGES) -> Fit:
    """Solve for each ridge and keep what is best on ``held_out``; start: V0 [columns, outputs]."""
    before = held_out.error(start)
    best = Fit(start, before, before, None)
    scale = float(np.trace(train.gram)) / len(train.gram)
    if train.rows == 0 or scale <= 0:
        return best
    for ridge in ridges:
        weight = ridge * scale
        damped = train.gram + weight * np.eye(len(train.gram))
        solution: Matrix = np.linalg.solve(damped, train.cross + weight * start).astype(np.float64)
        error = held_out.error(solution)
        if np.isfinite(error) and error < best.after:
            best = Fit(solution, before, error, ridge)
    return best
