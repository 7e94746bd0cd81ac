"""Reshape behind Reshape becomes one; a Reshape to the shape that its input has goes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import bypass, can_bypass, constant, input_of, out, producer, replace, static_shape


class DropNoOpReshape(Rewrite[ir.Node]):
    name = "drop_no_op_reshape"
    op_types = frozenset({"Reshape"})

    def pattern(self, node: ir.Node) -> ir.Node | None:
        shape = static_shape(out(node))
        return node if shape is not None and shape == static_shape(node.inputs[0]) else None

    def check(self, match: ir.Node) -> str | None:
        return can_bypass(match)

    def rewrite(self, graph: ir.Graph, match: ir.Node) -> None:
        bypass(graph, match)


@dataclass(frozen=True, slots=True)
class Match:
    first: ir.Node
    second: ir.Node


class MergeReshapes(Rewrite[Match]):
    """The first Reshape may have other readers: it stays for them and the second reads past it."""

    name = "merge_reshapes"
    op_types = frozenset({"Reshape"})

    def pattern(self, node: ir.Node) -> Match | None:
        first = producer(node.inputs[0], "Reshape")
        return Match(first, node) if first is not None else None

    def check(self, match: Match) -> str | None:
        target, shape = constant(input_of(match.second, 1)), static_shape(out(match.second))
        if target is None or shape is None or tuple(target.tolist()) != shape:
            return "the second shape is not a constant, or copies sizes from the first"
        return None

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        merged = ir.node("Reshape", [match.first.inputs[0], match.second.inputs[1]])
        replace(graph, [match.second], [merged], at=match.second)
