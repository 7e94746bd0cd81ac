"""Shapes of what loops carry. ONNX's inference forgets them, for a body may change them; MIL's loops keep them, and are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

ROUNDS = 8  # one for each loop inside or behind another


def keep_carried_shapes(model: ir.Model) -> ir.Model:
    """A copy of ``model`` in which what a Loop carries has the shape that it starts with, and all behind it is inferred anew.

    Whether it does keep it shows when the body is lowered: lowering/control.py refuses what changes. Without a Loop, ``model``.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    if not any(node.op_type == "Loop" for node in model.graph.all_nodes()):
        return model
    model = model.clone()
    for _ in range(ROUNDS):
        if not _assign(model.graph):
            break
        model = ShapeInferencePass()(model).model
    return model


def _assign(graph: ir.Graph) -> bool:
    """Whether a shape was found."""
    import onnx_ir as ir

    found = False
    for node in graph.all_nodes():
        if node.op_type != "Loop":
            continue
        body = node.attributes["body"].as_graph()
        for start, inner, output in zip(node.inputs[2:], body.inputs[2:], node.outputs, strict=False):
            for value in (inner, output):
                if start is not None and _is_static(start) and not _is_static(value):
                    value.shape = ir.Shape(list(start.shape or ()))
                    found = True
    return found


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)
