"""If as LiteRT's IF: one subgraph per branch, of which one runs.

Source: ONNX's definition of If (opset 21); LiteRT's kernels/if.cc: a condition of one element, then the inputs of both subgraphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, dtype_of, name_of, shape_of
from compiler.exporters.tflite.ops.subgraphs import (
    capture,
    close,
    enter,
    free_values,
    leave,
    lower_inside,
    open_graph,
    order_of,
)
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

KINDS = ("then", "else")


@lowers("If")
def branch(context: LoweringContext, node: ir.Node) -> None:
    """Raises Unsupported: the branches differ in type or shape. RefusedInside: they hold what cannot be expressed."""
    graphs: list[ir.Graph] = [node.attributes[f"{kind}_branch"].as_graph() for kind in KINDS]
    values = list(dict.fromkeys(value for graph in graphs for value in free_values(graph)))
    if not all(context.is_known(value) for value in values):
        return  # the refusal of what gives them stands for this node
    _check(node, graphs)
    condition = context.read(attr.first(node), layout.identity(len(shape_of(attr.first(node)))))
    captured = capture(context, values)
    quants = [context.output_quant(value) for value in node.outputs]
    orders: list[layout.Perm] = []
    subgraphs = []
    for kind, graph in zip(KINDS, graphs, strict=True):
        name = f"{node.name}/{kind}"
        child = open_graph(context, graph)
        inputs = enter(child, captured)
        lower_inside(child, graph, f"in the {kind} branch of {node.name!r}")
        orders = orders or [order_of(child, value) for value in graph.outputs]
        outputs: list[Tensor] = []
        child.begin(node.name or "", "If")
        for value, order, quant in zip(graph.outputs, orders, quants, strict=True):
            outputs.append(leave(child, value, order, [*inputs, *outputs], quant))
        subgraphs.append(close(context, child, name, inputs, outputs))
    results = []
    for value, order, quant in zip(node.outputs, orders, quants, strict=True):
        dtype = dtype_of(value) if quant is None else quant.dtype
        name = name_of(value) if value.name else f"{node.name}/unread"
        results.append(context.writer.tensor(name, layout.permuted(shape_of(value), order), dtype, quant))
        if value.name:
            context.bind(value, results[-1], order)
    operands = [condition, *(one.tensor for one in captured)]
    indices = {"thenSubgraphIndex": subgraphs[0], "elseSubgraphIndex": subgraphs[1]}
    context.emit("IF", operands, results, "IfOptions", **indices)


def _check(node: ir.Node, graphs: list[ir.Graph]) -> None:
    for value, *sides in zip(node.outputs, *(graph.outputs for graph in graphs), strict=True):
        for side in sides:
            if dtype_of(side) != dtype_of(value) or shape_of(side) != shape_of(value):
                raise Unsupported(
                    f"its branches give {value.name!r} different types or shapes", "Let both give one static shape."
                )
