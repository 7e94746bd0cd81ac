"""Shapes of what loops carry and collect. ONNX's inference forgets them, for a body may change what it carries; most do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtimes.session import Array

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

ROUNDS = 8  # one for each loop inside or behind another


def keep_carried_shapes(model: ir.Model) -> ir.Model:
    """A copy of ``model`` in which what a Loop carries has the shape that it starts with, where the body leaves it as it is.

    What a Loop collects over a constant number of steps has that number in front. All behind it is inferred anew. Without a
    Loop, ``model`` itself.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    if not any(node.op_type == "Loop" for node in model.graph.all_nodes()):
        return model
    model = model.clone()
    for _ in range(ROUNDS):
        started = _start(model.graph)
        if started:
            model = ShapeInferencePass()(model).model
        if not _confirm(model.graph) and not started:
            break
        model = ShapeInferencePass()(model).model
    return model


def _loops(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Graph]]:
    for node in graph.all_nodes():
        if node.op_type == "Loop":
            yield node, node.attributes["body"].as_graph()


def _start(graph: ir.Graph) -> bool:
    """Suppose that every step gets what the first gets. Whether a shape was found."""
    import onnx_ir as ir

    found = False
    for node, body in _loops(graph):
        for start, inner in zip(node.inputs[2:], body.inputs[2:], strict=True):
            if start is not None and _is_static(start) and not _is_static(inner):
                inner.shape = ir.Shape(list(start.shape or ()))
                found = True
    return found


def _confirm(graph: ir.Graph) -> bool:
    """Believe it of results that the body gives as it got them. Whether a shape was found."""
    import onnx_ir as ir

    found = False
    for node, body in _loops(graph):
        carried = len(node.inputs) - 2
        for place, output in enumerate(node.outputs):
            given = body.outputs[1 + place]
            if _is_static(output) or not _is_static(given):
                continue
            sizes = list(given.shape or ())
            if place < carried:
                if list(body.inputs[2 + place].shape or ()) != sizes:
                    continue
            else:
                steps = constant_steps(node)
                if steps is None:
                    continue
                sizes.insert(0, steps)
            output.shape = ir.Shape(sizes)
            found = True
    return found


def constant_steps(node: ir.Node) -> int | None:
    """How often a Loop runs, where nothing that it computes decides that; else None. Source: ONNX's Loop, opset 21."""
    count, start = (_constant(value) for value in node.inputs[:2])
    body = node.attributes["body"].as_graph()
    if count is None or (node.inputs[1] is not None and not (start is not None and start.all())):
        return None
    return max(0, int(count.reshape(()))) if _stays(body.outputs[0], body.inputs[1]) else None


def _stays(end: ir.Value, given: ir.Value) -> bool:
    """Whether the condition at a step's end is the one that it was given, or true."""
    constant, node = _constant(end), end.producer()
    if end is given or constant is not None:
        return constant is None or bool(constant.all())
    return (
        node is not None and node.op_type == "Identity" and node.inputs[0] is not None and _stays(node.inputs[0], given)
    )


def _constant(value: ir.Value | None) -> Array | None:
    if value is None:
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    if node is None or node.op_type != "Constant" or "value" not in node.attributes:
        return None
    return np.asarray(node.attributes["value"].as_tensor().numpy())


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)
