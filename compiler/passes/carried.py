"""Shapes of what loops carry and collect. ONNX's inference forgets them, for a body may change them; edge formats keep them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtimes.session import Array

if TYPE_CHECKING:
    import onnx_ir as ir

ROUNDS = 8  # one for each loop inside or behind another


def keep_carried_shapes(model: ir.Model) -> ir.Model:
    """A copy of ``model`` with shapes for its Loops' results, and for all behind them. Without a Loop, ``model``.

    What a Loop carries has the shape that it starts with, if the body hands it on so; what it collects over a number of steps
    that is known has that many. Where a body changes a shape, the value stays without one.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    loops = [node for node in model.graph.all_nodes() if node.op_type == "Loop"]
    if all(_is_static(output) for node in loops for output in node.outputs if output.name):
        return model
    model = model.clone()
    for _ in range(ROUNDS):
        if not _assign(model.graph):
            break
        model = ShapeInferencePass()(model).model
    _forget_changing(model.graph)
    return model


def known_steps(node: ir.Node) -> int | None:
    """The number of steps of a Loop, if a constant says it and no condition ends it before. Source: ONNX's Loop, opset 21."""
    count, start = (_constant(node.inputs[index]) if len(node.inputs) > index else None for index in (0, 1))
    if count is None or (len(node.inputs) > 1 and node.inputs[1] is not None and (start is None or not start.all())):
        return None
    body = node.attributes["body"].as_graph()
    return int(count.reshape(())) if _stays(body.outputs[0], body.inputs[1]) else None


def _stays(end: ir.Value, given: ir.Value) -> bool:
    """Whether the condition at a step's end is the one that it was given, or true."""
    constant = _constant(end)
    if end is given or constant is not None:
        return constant is None or bool(np.all(constant))
    node = end.producer()
    if node is None or node.op_type not in ("Identity", "Constant"):
        return False
    if node.op_type == "Identity":
        return node.inputs[0] is not None and _stays(node.inputs[0], given)
    return "value" in node.attributes and bool(np.all(node.attributes["value"].as_tensor().numpy()))


def _constant(value: ir.Value | None) -> Array | None:
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())


def _assign(graph: ir.Graph) -> bool:
    """Whether a shape was found."""
    import onnx_ir as ir

    found = False
    for node in graph.all_nodes():
        if node.op_type != "Loop":
            continue
        body, carried = node.attributes["body"].as_graph(), len(node.inputs) - 2
        for start, inner, output in zip(node.inputs[2:], body.inputs[2:], node.outputs, strict=False):
            for value in (inner, output):
                if start is not None and _is_static(start) and not _is_static(value):
                    value.shape = ir.Shape(list(start.shape or ()))
                    found = True
        steps = known_steps(node)
        for end, output in zip(body.outputs[1 + carried :], node.outputs[carried:], strict=False):
            if steps is not None and _is_static(end) and not _is_static(output):
                output.shape = ir.Shape([steps, *(end.shape or ())])
                found = True
    return found


def _forget_changing(graph: ir.Graph) -> None:
    """Take back what was assumed of a value that leaves a step in another shape than it came."""
    for node in graph.all_nodes():
        if node.op_type != "Loop":
            continue
        body = node.attributes["body"].as_graph()
        for inner, end, output in zip(body.inputs[2:], body.outputs[1:], node.outputs, strict=False):
            if _is_static(inner) and _is_static(end) and list(inner.shape or ()) != list(end.shape or ()):
                output.shape = None


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)
