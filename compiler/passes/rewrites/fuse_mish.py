"""x * Tanh(Softplus(x)) becomes Mish, which exporters write without the cancellation of that form."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import only_used_by, out, producer, replace


@dataclass(frozen=True, slots=True)
class Match:
    inner: ir.Node
    gate: ir.Node
    product: ir.Node


class FuseMish(Rewrite[Match]):
    """Source: ONNX operator Mish-18: y = x * tanh(softplus(x)). PyTorch's exporter for older opsets writes the three operators."""

    name = "fuse_mish"
    op_types = frozenset({"Mul"})

    def pattern(self, node: ir.Node) -> Match | None:
        for index in (0, 1):
            gate = producer(node.inputs[index], "Tanh")
            inner = None if gate is None else producer(gate.inputs[0], "Softplus")
            if gate is not None and inner is not None and inner.inputs[0] is node.inputs[1 - index]:
                return Match(inner, gate, node)
        return None

    def check(self, match: Match) -> str | None:
        if not only_used_by(out(match.gate), match.product) or not only_used_by(out(match.inner), match.gate):
            return "a part of it is read elsewhere"
        return None

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        fused = ir.node("Mish", [match.inner.inputs[0]])
        replace(graph, [match.inner, match.gate, match.product], [fused], at=match.product)
