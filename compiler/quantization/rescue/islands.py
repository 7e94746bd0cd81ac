"""Float islands: the nodes that cost most stay in float, chosen by measured sensitivity and a knapsack against size.

Sensitivity is measured one node at a time: the noise power at the worst output that disappears when this node alone goes back to
float. The gains of several nodes are taken as additive, which is an estimate: what counts is what the chosen set then scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from compiler.quantization.rescue.candidate import Bench, Candidate, judged_on, replanned
from compiler.quantization.rescue.knapsack import Sensitivity, knapsack
from compiler.quantization.rules import RULES
from compiler.quantization.structure import constant_of, name_of

BUDGETS = (0.02, 0.05, 0.10, 0.25)  # of the quantized weights' bytes, tried in turn
MOST_NODES = 128  # measured one by one, in graph order; what lies behind them stays int8, which bounds the time
SAMPLES = 32
NODE_BYTES = (
    256  # what an island costs beside its weights: two more boundary conversions, in bytes, so that none is free
)


def keep_sensitive_in_float(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` with more and more float, one candidate per budget that chooses other nodes than the one before."""
    measured = measure_sensitivity(start, bench)
    bench.sensitivity.extend(measured)
    table = [s for s in measured if s.gain_power > 0]
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
        found.append(Sensitivity(name_of(node), node.op_type, sqnr - base, power, _extra_bytes(node), "float32"))
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
        if decisions[name_of(node)].precision.integer_activations
        and (node.op_type == "Concat" or not RULES[node.op_type].moves_data)
        and node.outputs[0].name not in fused
    ]


def _extra_bytes(node: ir.Node) -> int:
    weights = [constant_of(v) for v in node.inputs[1:2]]
    return sum(3 * w.size for w in weights if w is not None and w.dtype == np.float32) + NODE_BYTES
