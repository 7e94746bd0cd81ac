"""Shapes of what loops carry and collect. ONNX's inference forgets them, for a body may change what it carries; most do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """How often a Loop runs, where nothing that it computes decides that; else None."""
    count, start = (_constant(value) for value in node.inputs[:2])
    body = node.attributes["body"].as_graph()
    stays = body.outputs[0] is body.inputs[1] or _hands_on(body.outputs[0], body.inputs[1])
    if node.inputs[1] is not None and not start:
        return None
    return max(0, count) if count is not None and stays else None


def _hands_on(value: ir.Value, given: ir.Value) -> bool:
    producer = value.producer()
    if producer is None:
        return bool(_constant(value))
    return producer.op_type == "Identity" and (producer.inputs[0] is given or bool(_constant(producer.inputs[0])))


def _constant(value: ir.Value | None) -> int | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return int(value.const_value.numpy().reshape(()))


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)
