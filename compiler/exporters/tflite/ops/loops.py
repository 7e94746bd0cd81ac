"""Loop with a step count or a condition that is known at run time alone: WHILE with subgraphs of its own.

What the loop carries, and what its body reads from outside, are the operands of WHILE.

Source: ONNX's definition of Loop (opset 21); LiteRT's tflite/kernels/while.cc: equal types and numbers of operands, inputs and
outputs, one boolean from the condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, dtype_of, name_of, shape_of
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.ops.subgraphs import (
    Captured,
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
from compiler.exporters.tflite.writer import GraphWriter, Subgraph
from compiler.passes.carried import constant_steps

if TYPE_CHECKING:
    import onnx_ir as ir

STEPS = np.dtype(np.int64)
TRUTH = np.dtype(np.bool_)
ONE = (1,)  # the shape of the step number, the step count and the condition inside the file
FIXED = "Let the loop carry values of one static shape, or give it a constant number of steps."


@dataclass(slots=True)
class _Operands:
    """Operands of WHILE, and in the same order the inputs and outputs of its body. The first is the step number."""

    outside: list[Tensor] = field(default_factory=list)
    inside: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)


@lowers("Loop")
def loop(context: LoweringContext, node: ir.Node) -> None:
    """Raises Unsupported: the steps collect values or change shapes. RefusedInside: the body holds what cannot be expressed."""
    body: ir.Graph = node.attributes["body"].as_graph()
    states = [value for value in node.inputs[2:] if value is not None]
    collected = node.outputs[len(states) :]
    if collected and not constant_steps(node):
        raise Unsupported("it collects values over a number of steps that is known at run time alone", FIXED)
    captured = free_values(body)
    if not all(context.is_known(value) for value in captured):
        return  # the refusal of what gives them stands for this node
    child = open_graph(context, body)
    operands = _Operands()
    _control(context, child, node, body, operands)
    orders = [order_of(context, value) for value in states]
    for value, inner, order in zip(states, body.inputs[2:], orders, strict=True):
        _carry(context, child, value, inner, order, operands)
    for value in collected:
        _hold(context, child, value, operands)
    around = capture(context, captured)
    operands.outside += [one.tensor for one in around]
    operands.inside += enter(child, around)
    lower_inside(child, body, f"in the body of {node.name!r}")
    _advance(child, node, body, orders, operands)
    results = [context.writer.tensor(f"{node.name}/while", t.shape, t.dtype, t.quant) for t in operands.outside]
    orders += [layout.identity(len(shape_of(value))) for value in collected]
    for value, tensor, order in zip(node.outputs, results[3:], orders, strict=False):
        if value.name:
            context.writer.rename(tensor, name_of(value))
            context.bind(value, tensor, order)
    condition = _condition(f"{node.name}/condition", operands.outside)
    step = close(context, child, f"{node.name}/body", operands.inside, operands.after)
    indices = {"condSubgraphIndex": condition, "bodySubgraphIndex": step}
    context.emit("WHILE", operands.outside, results, "WhileOptions", **indices)


def _control(
    context: LoweringContext, child: LoweringContext, node: ir.Node, body: ir.Graph, operands: _Operands
) -> None:
    """Step number, step count (without one: the largest number) and condition (without one: true)."""
    given = [context.literal(np.zeros(ONE, STEPS), "step")]
    absent = (np.full(ONE, np.iinfo(STEPS).max, STEPS), np.ones(ONE, TRUTH))
    for value, default in zip(node.inputs[:2], absent, strict=True):
        if value is None:
            given.append(context.literal(default, "absent"))
            continue
        tensor = context.read(value, layout.identity(len(shape_of(value))))
        given.append(context.reshape(tensor, ONE))
    for tensor, name in zip(given, ("step", "steps", "go"), strict=True):
        operands.outside.append(tensor)
        operands.inside.append(child.writer.tensor(name, ONE, tensor.dtype))
    for value, tensor in ((body.inputs[0], operands.inside[0]), (body.inputs[1], operands.inside[2])):
        shaped = child.reshape(tensor, shape_of(value))
        child.bind(value, shaped, layout.identity(len(shaped.shape)))


def _carry(
    context: LoweringContext, child: LoweringContext, value: ir.Value, inner: ir.Value, order: Perm, operands: _Operands
) -> None:
    """``value`` of the graph as ``inner`` of the body."""
    tensor = context.read(value, order)
    if tensor.dtype != dtype_of(inner) or shape_of(inner) != shape_of(value):
        raise Unsupported(f"the type or shape of {inner.name!r} changes between steps", FIXED)
    operands.outside.append(tensor)
    operands.inside += enter(child, [Captured(inner, tensor, order)])


def _hold(context: LoweringContext, child: LoweringContext, value: ir.Value, operands: _Operands) -> None:
    """A tensor [steps, ...] for what the steps give, which each of them gets and changes."""
    shape, dtype = shape_of(value), dtype_of(value)
    name = value.name or f"{context.node}/unread"
    room = context.writer.tensor(f"{name}/room", shape, dtype)
    sizes = context.literal(np.asarray(shape, np.int32), "sizes")
    context.emit("FILL", [sizes, context.literal(np.zeros((), dtype), "nothing")], [room], "FillOptions")
    operands.outside.append(room)
    operands.inside.append(child.writer.tensor(name, shape, dtype))


def _put(child: LoweringContext, value: ir.Value, step: Tensor, room: Tensor) -> Tensor:
    """``room`` with this step's ``value`` in its place."""
    item = child.read(value, layout.identity(len(shape_of(value))))
    if (*room.shape[1:],) != item.shape:
        raise Unsupported(f"the shape of {value.name!r} changes between steps", FIXED)
    rank = len(room.shape)
    number = child.writer.tensor(f"{child.node}/number", ONE, np.dtype(np.int32))
    child.emit("CAST", [step], [number], None, to=number.dtype)
    place = child.writer.tensor(f"{child.node}/place", (rank,), number.dtype)
    child.emit("PAD", [number, child.literal(np.asarray([[0, rank - 1]], np.int32), "zeros")], [place], "PadOptions")
    result = child.temporary(room.shape, room)
    child.emit("DYNAMIC_UPDATE_SLICE", [room, child.reshape(item, (1, *item.shape)), place], [result])
    return result


def _advance(
    child: LoweringContext, node: ir.Node, body: ir.Graph, orders: Sequence[Perm], operands: _Operands
) -> None:
    """The body's outputs: the next number, the same count, the condition, the states; what was captured stays."""
    child.begin(node.name or "", node.op_type)
    step, steps, _ = operands.inside[:3]
    following = child.temporary(ONE, step)
    child.emit("ADD", [step, child.literal(np.ones(ONE, STEPS), "one")], [following], "AddOptions")
    go = leave(child, body.outputs[0], layout.identity(len(shape_of(body.outputs[0]))), operands.inside)
    operands.after = [following, steps, child.reshape(go, ONE)]
    for value, given, order in zip(body.outputs[1:], body.inputs[2:], orders, strict=False):
        if shape_of(value) != shape_of(given) or dtype_of(value) != dtype_of(given):
            raise Unsupported(f"the type or shape of {given.name!r} changes between steps", FIXED)
        operands.after.append(leave(child, value, order, [*operands.inside, *operands.after]))
    for value in body.outputs[1 + len(orders) :]:
        operands.after.append(_put(child, value, step, operands.inside[len(operands.after)]))
    operands.after += operands.inside[len(operands.after) :]


def _condition(name: str, operands: Sequence[Tensor]) -> Subgraph:
    """Whether there is a step to come and the last one said to go on."""
    writer = GraphWriter()
    inputs = [writer.tensor(f"operand_{i}", t.shape, t.dtype) for i, t in enumerate(operands)]
    more, both = (writer.tensor(part, ONE, TRUTH) for part in ("more", "both"))
    writer.operator("LESS", inputs[:2], [more], "LessOptions")
    writer.operator("LOGICAL_AND", [more, inputs[2]], [both], "LogicalAndOptions")
    return Subgraph(name, writer, tuple(inputs), (both,))
