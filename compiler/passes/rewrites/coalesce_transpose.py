"""Reshape, Transpose, Reshape of high rank: axes that stay neighbours become one.

Window partitions of vision transformers pass through six dimensions; Core ML's tensors have five, and fewer are faster everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import add_initializer, only_used_by, out, producer, static_shape
from compiler.passes.rewrites.merge_transposes import permutation

MIN_RANK = 5


@dataclass(frozen=True, slots=True)
class Match:
    """``first`` is the Reshape before ``transpose``, ``readers`` are the Reshapes behind it."""

    first: ir.Node
    transpose: ir.Node
    readers: tuple[ir.Node, ...]


class CoalesceTranspose(Rewrite[Match]):
    """The transposed value has the same elements in the same order with fewer, larger axes."""

    name = "coalesce_transpose"
    op_types = frozenset({"Transpose"})

    def pattern(self, node: ir.Node) -> Match | None:
        first = producer(node.inputs[0], "Reshape")
        readers = tuple(use.node for use in out(node).uses())
        reshaped = bool(readers) and all(reader.op_type == "Reshape" and reader.domain == "" for reader in readers)
        return Match(first, node, readers) if first is not None and reshaped else None

    def check(self, match: Match) -> str | None:
        shape, axes = static_shape(out(match.first)), permutation(match.transpose)
        if shape is None or axes is None or any(static_shape(out(reader)) is None for reader in match.readers):
            return "a shape is not known"
        if len(shape) < MIN_RANK or len(_groups(axes)) == len(shape):
            return "no axes stay neighbours, or the rank is small"
        if out(match.transpose).is_graph_output() or not only_used_by(out(match.first), match.transpose):
            return "others read what lies between"
        return None

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        shape, axes = static_shape(out(match.first)), permutation(match.transpose)
        assert shape is not None and axes is not None
        groups = _groups(axes)
        in_order = sorted(groups)
        sizes = [int(np.prod([shape[axis] for axis in group])) for group in in_order]
        moved = [in_order.index(group) for group in groups]
        folded = ir.node("Reshape", [match.first.inputs[0], _shape(graph, match.first, sizes)])
        turned = ir.node("Transpose", [out(folded)], {"perm": moved})
        for node, like, dims in ((folded, match.first, sizes), (turned, match.transpose, [sizes[i] for i in moved])):
            node.name, out(node).name = like.name, out(like).name
            out(node).type, out(node).shape = out(like).type, ir.Shape(dims)
        graph.insert_before(match.transpose, [folded, turned])
        for reader in match.readers:  # a 0 in their shapes would copy a size of the old value
            reader.replace_input_with(1, _shape(graph, reader, static_shape(out(reader)) or ()))
            reader.replace_input_with(0, out(turned))
        graph.remove(match.transpose, safe=True)
        graph.remove(match.first, safe=True)


def _groups(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Runs of input axes that follow each other in the output, in output order."""
    groups: list[list[int]] = []
    for axis in axes:
        if groups and groups[-1][-1] == axis - 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return [tuple(group) for group in groups]


def _shape(graph: ir.Graph, node: ir.Node, sizes: Sequence[int]) -> ir.Value:
    return add_initializer(graph, f"{node.name}_shape", np.asarray(sizes, np.int64))
