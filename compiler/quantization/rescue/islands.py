"""Float islands: the nodes that cost most stay in float, chosen by measured sensitivity and a knapsack against size.

Sensitivity is measured one node at a time: the noise power at the worst output that disappears when this node alone goes back to
float. The gains of several nodes are taken as additive, which is an estimate: what counts is what the chosen set then scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from compiler.errors import DataError
from compiler.quantization.rescue.candidate import Bench, Candidate, judged_on, replanned
from compiler.quantization.rules import RULES
from compiler.quantization.spec import NodePrecision
from compiler.quantization.structure import constant_of, name_of

BUDGETS = (0.02, 0.05, 0.10, 0.25)  # of the quantized weights' bytes, tried in turn
MOST_NODES = 128  # measured one by one, in graph order; what lies behind them stays int8, which bounds the time
SAMPLES = 32
NODE_BYTES = (
    256  # what an island costs beside its weights: two more boundary conversions, in bytes, so that none is free
)
CELLS = 256


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """``gain_db`` at the worst output if ``node`` alone stays in float; ``extra_bytes`` that its weights then take."""

    node: str
    op_type: str
    gain_db: float
    gain_power: float
    extra_bytes: int


def keep_sensitive_in_float(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` with more and more float, one candidate per budget that chooses other nodes than the one before."""
    table = [s for s in measure_sensitivity(start, bench) if s.gain_power > 0]
    before: tuple[str, ...] = ()
    for share in BUDGETS:
        chosen = knapsack(table, int(share * start.weight_bytes()) + NODE_BYTES)
        if not chosen or chosen == before:
            continue
        before = chosen
        keep = tuple(sorted({*start.options.keep_float, *chosen}))
        yield (
            f"{share:.0%} of the bytes: {', '.join(chosen)}",
            replanned(start, replace(start.options, keep_float=keep)),
        )


def measure_sensitivity(start: Candidate, bench: Bench) -> list[Sensitivity]:
    """One entry per node that can be an island, in graph order; measured on training samples, not on those that judge."""
    few = judged_on(bench.hub, bench.train, bench.train.take(SAMPLES))
    base = few.score(start.quantized().model).sqnr_db
    found = []
    for node in island_nodes(start)[:MOST_NODES]:
        keep = (*start.options.keep_float, name_of(node))
        sqnr = few.score(replanned(start, replace(start.options, keep_float=keep)).quantized().model).sqnr_db
        power = 10 ** (-base / 10) - 10 ** (-sqnr / 10)
        found.append(Sensitivity(name_of(node), node.op_type, sqnr - base, power, _extra_bytes(node)))
    return found


def island_nodes(start: Candidate) -> list[ir.Node]:
    """int8 nodes with arithmetic of their own, and Concat, which forces one scale on tensors of unlike ranges (detector heads).

    What else moves data, or is fused into another node, follows by itself.
    """
    decisions = start.spec.nodes
    fused = {d.fused_into for d in decisions.values() if d.fused_into}
    return [
        node
        for node in start.reference.graph
        if decisions[name_of(node)].precision is NodePrecision.INT8
        and (node.op_type == "Concat" or not RULES[node.op_type].moves_data)
        and node.outputs[0].name not in fused
    ]


def _extra_bytes(node: ir.Node) -> int:
    weights = [constant_of(v) for v in node.inputs[1:2]]
    return sum(3 * w.size for w in weights if w is not None and w.dtype == np.float32) + NODE_BYTES


def knapsack(table: Sequence[Sensitivity], budget_bytes: int) -> tuple[str, ...]:
    """The nodes with the largest summed gain that fit the budget, in the table's order.

    0/1 knapsack over CELLS cells of bytes, costs rounded up, so the budget holds.

    Raises:
        DataError: the budget is not positive.
    """
    if budget_bytes <= 0:
        raise DataError(f"A budget of {budget_bytes} bytes holds nothing.", remedy="Give a positive budget.")
    cell = max(1, budget_bytes // CELLS)
    room = budget_bytes // cell
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (room + 1)
    for index, item in enumerate(table):
        cost = -(-item.extra_bytes // cell)
        for free in range(room, cost - 1, -1):
            gain, chosen = best[free - cost]
            if gain + item.gain_power > best[free][0]:
                best[free] = (gain + item.gain_power, (*chosen, index))
    return tuple(table[i].node for i in best[room][1])
