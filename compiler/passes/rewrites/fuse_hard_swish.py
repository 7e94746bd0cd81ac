"""x * HardSigmoid(x) with alpha 1/6 and beta 1/2 becomes HardSwish, which TFLite and Core ML have as one operator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import number, only_used_by, out, producer, replace


@dataclass(frozen=True, slots=True)
class Match:
    gate: ir.Node
    product: ir.Node


class FuseHardSwish(Rewrite[Match]):
    """Source: ONNX operator HardSwish-14: y = x * max(0, min(1, x / 6 + 0.5))."""

    name = "fuse_hard_swish"
    op_types = frozenset({"Mul"})

    def pattern(self, node: ir.Node) -> Match | None:
        for index in (0, 1):
            gate = producer(node.inputs[index], "HardSigmoid")
            if gate is not None and gate.inputs[0] is node.inputs[1 - index]:
                return Match(gate, node)
        return None

    def check(self, match: Match) -> str | None:
        # The attributes are float32 in the file: 1/6 comes back as 0.16666667163.
        alpha, beta = number(match.gate, "alpha", 0.2), number(match.gate, "beta", 0.5)
        if not math.isclose(alpha, 1 / 6, rel_tol=1e-6) or beta != 0.5:
            return f"alpha {alpha:.6g} and beta {beta:.6g} are not 1/6 and 1/2"
        if not only_used_by(out(match.gate), match.product):
            return "the gate is read elsewhere"
        return None

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        fused = ir.node("HardSwish", [match.gate.inputs[0]])
        replace(graph, [match.gate, match.product], [fused], at=match.product)
