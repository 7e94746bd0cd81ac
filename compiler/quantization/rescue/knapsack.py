"""Which nodes to spare int8, given what each would bring and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from compiler.errors import DataError

CELLS: Final = 256


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one node, or one group of values, would bring and cost.

    ``gain_db`` at the worst output if ``node`` alone is spared int8, ``gain_power`` the noise power that then disappears, relative
    to the signal's; ``cost``: bytes that float weights take more, or multiply-accumulates that 16-bit kernels do.
    """

    node: str
    op_type: str
    gain_db: float
    gain_power: float
    cost: int
    instead: str = "float32"  # of int8: what was measured


def knapsack(table: Sequence[Sensitivity], budget: int) -> tuple[str, ...]:
    """The nodes with the largest summed gain that fit the budget, in the table's order.

    0/1 knapsack over CELLS cells of cost, costs rounded up, so the budget holds.

    Raises:
        DataError: the budget is not positive.
    """
    if budget <= 0:
        raise DataError(f"A budget of {budget} holds nothing.", remedy="Give a positive budget.")
    cell = max(1, budget // CELLS)
    room = budget // cell
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (room + 1)
    for index, item in enumerate(table):
        cost = -(-item.cost // cell)
        for free in range(room, cost - 1, -1):
            gain, chosen = best[free - cost]
            if gain + item.gain_power > best[free][0]:
                best[free] = (gain + item.gain_power, (*chosen, index))
    return tuple(table[i].node for i in best[room][1])
