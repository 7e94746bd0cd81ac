"""Few changed codes in place of many: a layer's error is made small by changing only those codes that are worth their bytes.

For one output channel with weights w, scale s, old codes q and inputs X (H = X X' / n, a column of ones standing for the bias),
the codes sought are

    min over q'   (w - s q')' H (w - s q') + price * sum over changed codes of their bits

which coordinate descent finds greedily: each turn takes, per channel, the one change that gains most. A code that went may be
compensated by a neighbour that its input goes together with, which is what makes few changes suffice; the thought is that of
second-order rounding (compiler/quantization/rescue/rounding.py), turned from "round all, each well" to "change few". Greedy descent
ends in local minima: it starts once from the old codes and once from the nearest ones, and each channel keeps the better end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_TURNS = 400  # changes per channel; what needs more is better off with the nearest codes, the other start
ROUNDS = 2  # the second knows how rare a change is in its tensor
BITS_AT_FIRST = 6.0  # of one changed code: one in 25 changed
BIAS_BITS = 12.0  # an int32 that changed

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """One layer: [groups, outputs, columns]; where ``with_bias``, the last column is the bias and its input is 1.

    ``wanted``: real weights; ``step``: what one code is worth; ``old``, ``nearest``: codes, of which weights' end at ``limit``;
    ``hessian``: [groups, columns, columns].
    """

    wanted: Matrix
    step: Matrix
    old: Matrix
    nearest: Matrix
    hessian: Matrix
    with_bias: bool
    limit: int

    def error(self, codes: Matrix) -> Matrix:
        """Mean squared error of each output, [groups, outputs]."""
        left = self.wanted - codes * self.step
        error: Matrix = (np.matmul(left, self.hessian) * left).sum(axis=2)
        return error


def pursue(problem: Problem, price: float) -> Matrix:
    """Codes of ``problem``'s shape. ``price``: squared output error that one bit is worth."""
    weights = problem.wanted.shape[2] - int(problem.with_bias)
    bits = np.full(problem.wanted.shape[2], BITS_AT_FIRST)
    bits[weights:] = BIAS_BITS
    codes = problem.old
    for _ in range(ROUNDS):
        ends = [_descend(problem, start, price * bits) for start in (problem.old, problem.nearest)]
        costs = [problem.error(end) + price * (bits * (end != problem.old)).sum(axis=2) for end in ends]
        codes = np.where((costs[0] <= costs[1])[:, :, None], ends[0], ends[1])
        changed = float(np.clip((codes != problem.old)[:, :, :weights].mean(), 1e-4, 0.5))
        bits[:weights] = np.log2((1 - changed) / changed) + 1  # and one for the sign
    return codes


def _descend(problem: Problem, start: Matrix, prices: Matrix) -> Matrix:
    """Greedy coordinate descent from ``start``; ``prices``: [columns], of a code that differs from the old one."""
    codes, hessian, step = start.copy(), problem.hessian, problem.step
    slope = np.matmul(problem.wanted - codes * step, hessian)
    curve = np.maximum(step**2 * np.einsum("gii->gi", hessian)[:, None, :], 1e-30)
    groups, outputs = np.arange(codes.shape[0])[:, None], np.arange(codes.shape[1])[None]
    weights = codes.shape[2] - int(problem.with_bias)
    low, high = np.full(codes.shape[2], -np.inf), np.full(codes.shape[2], np.inf)
    low[:weights], high[:weights] = -problem.limit, problem.limit
    for _ in range(MOST_TURNS):
        best = np.clip(codes + np.rint(slope * step / curve), low, high)
        # Going back to the old code is a change of its own, which gains its price.
        gains = [_gain(new - codes, slope, step, curve) - prices * (new != problem.old) for new in (best, problem.old)]
        gain = np.maximum(*gains) + prices * (codes != problem.old)
        column = gain.argmax(axis=2)
        taken = gain[groups, outputs, column] > 1e-12 * curve[groups, outputs, column]
        if not taken.any():
            break
        at = groups, outputs, column
        new = np.where(gains[0][at] >= gains[1][at], best[at], problem.old[at])
        moved = np.where(taken, new - codes[at], 0.0)
        codes[at] += moved
        slope -= (moved * step[at])[:, :, None] * hessian[groups, column]
    return codes


def _gain(change: Matrix, slope: Matrix, step: Matrix, curve: Matrix) -> Matrix:
    """By how much the error falls: 2 k s (H e) - (k s)**2 H_jj for a change of k codes."""
    gain: Matrix = change * (2 * step * slope - change * curve)
    return gain
