"""Graphs inside a node as subgraphs of the file, for WHILE and IF.

Subgraphs see no other tensors: what they read from outside is an operand of the operator and an input of theirs, in the axis order
in which it lies outside. Constants are written into the subgraph, where they share their buffer with equal ones elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, name_of, shape_of
from compiler.exporters.tflite.driver import RefusedInside, lower_nodes
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.relayout import relayout
from compiler.exporters.tflite.tensors import QuantParams, Tensor
from compiler.exporters.tflite.writer import Subgraph

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Captured:
    """A value from outside that is computed at run time: as the node reads it, and in which order."""

    value: ir.Value
    tensor: Tensor
    perm: Perm


def free_values(graph: ir.Graph) -> list[ir.Value]:
    """What ``graph`` and the subgraphs in it read from outside, each once, in the order of first use."""
    own = {*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)}
    found = dict.fromkeys(value for value in _read(graph) if value not in own)
    return list(found)


def _read(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from (value for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            if attribute.type.name == "GRAPH":
                yield from free_values(attribute.value)
    yield from graph.outputs


def order_of(context: LoweringContext, value: ir.Value) -> Perm:
    """The order in which ``value`` lies; the hub's for constants."""
    return context.perm(value) or layout.identity(len(shape_of(value)))


def capture(context: LoweringContext, values: Sequence[ir.Value]) -> list[Captured]:
    """Those of ``values`` that are not constant, integers as they are stored."""
    found = []
    for value in values:
        if not context.is_constant(value):
            perm = order_of(context, value)
            found.append(Captured(value, context.read(value, perm, stored=True), perm))
    return found


def open_graph(context: LoweringContext, graph: ir.Graph) -> LoweringContext:
    """A context that knows the constants that ``graph`` holds and reads."""
    if context.free_batch:
        raise Unsupported("its subgraphs hold the batch size", "Build with a fixed --batch.")
    child = context.child()
    for name, value in graph.initializers.items():
        if value.const_value is None:
            raise Unsupported(f"inside it, the content of {name!r} is missing", "Embed the weights.")
        child.set_constant(value, value.const_value.numpy())
    for value in free_values(graph):
        if context.is_constant(value):
            child.inherit(context, value)
    return child


def enter(child: LoweringContext, captured: Sequence[Captured]) -> list[Tensor]:
    """An input of the subgraph for each captured value."""
    inputs = []
    for one in captured:
        inputs.append(child.writer.tensor(name_of(one.value), one.tensor.shape, one.tensor.dtype, one.tensor.quant))
        child.bind(one.value, inputs[-1], one.perm)
    return inputs


def lower_inside(child: LoweringContext, graph: ir.Graph, where: str) -> None:
    """Raises RefusedInside with all that cannot be expressed."""
    refusals = lower_nodes(child, graph, where)
    if refusals:
        raise RefusedInside(refusals)


def leave(
    child: LoweringContext, value: ir.Value, perm: Perm, taken: Sequence[Tensor], quant: QuantParams | None = None
) -> Tensor:
    """A result of the subgraph in order ``perm``: a tensor no constant and none of ``taken``: kernels copy them in turn."""
    tensor = child.read(value, perm, stored=quant is not None)
    if quant is not None:
        tensor = child.quantize(tensor, quant)
    if tensor.data is None and all(tensor.index != other.index for other in taken):
        return tensor
    copy = child.temporary(tensor.shape, tensor)
    child.emit("RESHAPE", [tensor, child.literal(np.asarray(tensor.shape, np.int32), "shape")], [copy])
    return copy


def close(
    context: LoweringContext, child: LoweringContext, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Subgraph:
    """The subgraph in its cheapest axis orders; outputs that are inputs stay so. The child's notes become the node's."""
    given = {tensor.index: place for place, tensor in enumerate(inputs)}
    named = [(child.writer.name(tensor), tensor) for tensor in inputs]
    computed = [tensor for tensor in outputs if tensor.index not in given]
    laid = relayout(child.writer, named, [(child.writer.name(tensor), tensor) for tensor in computed])
    made = iter(tensor for _, tensor in laid.outputs)
    entries = tuple(tensor for _, tensor in laid.inputs)
    results = tuple(entries[given[t.index]] if t.index in given else next(made) for t in outputs)
    for note in [*child.notes, *(f"transpose of {one.why}" for one in laid.moved)]:
        context.note(f"in {name!r}: {note}")
    return Subgraph(name, laid.writer, entries, results)
