"""Transpose behind Transpose becomes one; one that moves nothing goes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import bypass, can_bypass, ints, producer, rank, replace


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """``perm``; without it Transpose reverses the axes, which takes the rank to know."""
    axes, size = ints(node, "perm"), rank(node.inputs[0])
    if axes is not None:
        return axes
    return tuple(reversed(range(size))) if size is not None else None


class DropNoOpTranspose(Rewrite[ir.Node]):
    name = "drop_no_op_transpose"
    op_types = frozenset({"Transpose"})

    def pattern(self, node: ir.Node) -> ir.Node | None:
        axes = permutation(node)
        return node if axes is not None and axes == tuple(range(len(axes))) else None

    def check(self, match: ir.Node) -> str | None:
        return can_bypass(match)

    def rewrite(self, graph: ir.Graph, match: ir.Node) -> None:
        bypass(graph, match)


@dataclass(frozen=True, slots=True)
class Match:
    first: ir.Node
    second: ir.Node


class MergeTransposes(Rewrite[Match]):
    """out[i] of the second is axis first[second[i]] of the source; the first stays if others read it."""

    name = "merge_transposes"
    op_types = frozenset({"Transpose"})

    def pattern(self, node: ir.Node) -> Match | None:
        first = producer(node.inputs[0], "Transpose")
        return Match(first, node) if first is not None else None

    def check(self, match: Match) -> str | None:
        if permutation(match.first) is None or permutation(match.second) is None:
            return "a permutation is not known"
        return None

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        first, second = permutation(match.first), permutation(match.second)
        assert first is not None and second is not None
        axes = [first[axis] for axis in second]
        merged = ir.node("Transpose", [match.first.inputs[0]], {"perm": axes})
        replace(graph, [match.second], [merged], at=match.second)
