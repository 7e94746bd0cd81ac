"""Lowers node after node of a graph, the model's own or one inside a Loop or an If, and collects what cannot be expressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.errors import Refusal
from compiler.exporters.base import signature
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, dtype_of, shape_of
from compiler.exporters.tflite.table import TFLITE
from compiler.hub import HUB_OPSET, SIZED_BY_DATA

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

REPLACE = "Replace it in the source, or leave out this format with --format."


class RefusedInside(Exception):
    """Nodes of a node's own graphs cannot be expressed; they stand for the node itself."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        super().__init__(f"{len(refusals)} node(s)")
        self.refusals = list(refusals)


def lower_nodes(context: LoweringContext, graph: ir.Graph, where: str = "") -> list[Refusal]:
    """Everything in ``graph`` that cannot be expressed. ``where`` says in which node's graph it stands, for the messages."""
    refusals = []
    for node in graph:
        found = _lower_node(context, node, where)
        if found:
            refusals += found
            _pretend(context, node)
    return refusals


def _lower_node(context: LoweringContext, node: ir.Node, where: str) -> list[Refusal]:
    name = node.name or ""
    if name in context.skipped:
        return []
    context.begin(name, node.op_type)
    if node.domain not in ("", "ai.onnx"):
        return [_refused(node, f"the domain {node.domain!r} is not ONNX's own", REPLACE, where)]
    lowering = TFLITE.find(node.op_type, HUB_OPSET)
    if lowering is None:
        return [_refused(node, "this exporter has no lowering for the operator", REPLACE, where)]
    try:
        for value in node.outputs:
            if value.name and node.op_type not in SIZED_BY_DATA:
                shape_of(value), dtype_of(value)
        if all(value is None or context.is_known(value) for value in node.inputs):
            lowering(context, node)
    except Unsupported as error:
        return [_refused(node, error.reason, error.remedy or REPLACE, where)]
    except RefusedInside as error:
        return error.refusals
    return []


def _pretend(context: LoweringContext, node: ir.Node) -> None:
    """Give a refused node's outputs a tensor, so that the nodes after it are checked as well."""
    for value in node.outputs:
        try:
            if value.name:
                context.produce(value, layout.identity(len(shape_of(value))))
        except Unsupported:
            continue  # nodes that read it are passed over; this refusal stands for them


def _refused(node: ir.Node, reason: str, remedy: str, where: str) -> Refusal:
    return Refusal(
        node.name or "", node.op_type, f"{where}: {reason}" if where else reason, "tflite", remedy, signature(node)
    )
