"""Loop with a step count or a condition that is known at run time alone: WHILE with subgraphs of its own.

What the loop carries, and what its body reads from outside, are the operands of WHILE, in the hub's axis order: subgraphs see
no other tensors. Constants are written into the subgraph, where they share their buffer with equal ones elsewhere.

Source: ONNX's definition of Loop (opset 21); LiteRT's tflite/kernels/while.cc: equal types and numbers of operands, inputs and
outputs, one boolean from the condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, dtype_of, name_of, shape_of
from compiler.exporters.tflite.table import TFLITE, lowers
from compiler.exporters.tflite.tensors import Tensor
from compiler.exporters.tflite.writer import GraphWriter, Subgraph
from compiler.hub import HUB_OPSET

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
    """Raises Unsupported: values are collected over the steps, shapes change between steps, or the body cannot be expressed."""
    body: ir.Graph = node.attributes["body"].value
    states = list(node.inputs[2:])
    if len(node.outputs) != len(states):
        raise Unsupported("it collects values over a number of steps that is known at run time alone", FIXED)
    captured = free_values(body)
    if not all(context.is_known(value) for value in captured):
        return  # the refusal of what gives them stands for this node
    child = context.child()
    _constants(child, body)
    operands = _Operands()
    _control(context, child, node, body, operands)
    for value, given in zip(states, body.inputs[2:], strict=True):
        assert value is not None, "Loop's carried values are not optional"
        _carry(context, child, value, given, operands)
    for value in captured:
        if context.is_constant(value):
            child.inherit(context, value)
        else:
            _carry(context, child, value, value, operands)
    _lower(child, body)
    _advance(context, child, node, body, operands)
    results = [context.writer.tensor(f"{node.name}/while", t.shape, t.dtype) for t in operands.outside]
    for place, value in enumerate(node.outputs):
        if value.name:
            tensor = results[3 + place]
            context.writer.rename(tensor, name_of(value))
            context.bind(value, tensor, layout.identity(len(tensor.shape)))
    context.emit(
        "WHILE",
        operands.outside,
        results,
        "WhileOptions",
        condSubgraphIndex=_condition(f"{node.name}/condition", operands.outside),
        bodySubgraphIndex=Subgraph(f"{node.name}/body", child.writer, tuple(operands.inside), tuple(operands.after)),
    )
    for note in child.notes:
        context.note(f"in the body of {node.name!r}: {note}")


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


def _constants(child: LoweringContext, body: ir.Graph) -> None:
    for name, value in body.initializers.items():
        if value.const_value is None:
            raise Unsupported(f"in its body, the content of {name!r} is missing", "Embed the weights.")
        child.set_constant(value, value.const_value.numpy())


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
    context: LoweringContext, child: LoweringContext, value: ir.Value, inner: ir.Value, operands: _Operands
) -> None:
    """``value`` of the graph as ``inner`` of the body."""
    order = layout.identity(len(shape_of(value)))
    tensor = context.read(value, order)
    if tensor.dtype != dtype_of(inner) or shape_of(inner) != shape_of(value):
        raise Unsupported(f"the type or shape of {inner.name!r} changes between steps", FIXED)
    operands.outside.append(tensor)
    operands.inside.append(child.writer.tensor(name_of(inner), tensor.shape, tensor.dtype))
    child.bind(inner, operands.inside[-1], order)


def _lower(child: LoweringContext, body: ir.Graph) -> None:
    for node in body:
        if node.name and node.name in child.skipped:
            continue
        child.begin(node.name or "", node.op_type)
        what = f"in its body, {node.op_type} {node.name!r}"
        lowering = TFLITE.find(node.op_type, HUB_OPSET)
        if lowering is None or node.domain not in ("", "ai.onnx"):
            raise Unsupported(f"{what} has no lowering", FIXED)
        try:
            lowering(child, node)
        except Unsupported as error:
            raise Unsupported(f"{what}: {error.reason}", error.remedy or FIXED) from error


def _advance(
    context: LoweringContext, child: LoweringContext, node: ir.Node, body: ir.Graph, operands: _Operands
) -> None:
    """The body's outputs: the next number, the same count, the condition, the states; what was captured stays."""
    child.begin(node.name or "", node.op_type)
    step, steps, _ = operands.inside[:3]
    following = child.temporary(ONE, step)
    child.emit("ADD", [step, child.literal(np.ones(ONE, STEPS), "one")], [following], "AddOptions")
    go = child.reshape(child.read(body.outputs[0], layout.identity(len(shape_of(body.outputs[0])))), ONE)
    operands.after = [following, steps, _own(child, go, operands.inside)]
    for value, given in zip(body.outputs[1:], body.inputs[2:], strict=True):
        if shape_of(value) != shape_of(given) or dtype_of(value) != dtype_of(given):
            raise Unsupported(f"the type or shape of {given.name!r} changes between steps", FIXED)
        tensor = child.read(value, layout.identity(len(shape_of(value))))
        operands.after.append(_own(child, tensor, [*operands.inside, *operands.after]))
    operands.after += operands.inside[len(operands.after) :]


def _own(child: LoweringContext, tensor: Tensor, taken: Sequence[Tensor]) -> Tensor:
    """``tensor``, or a copy where it is a constant or stands elsewhere too: the kernel copies outputs one after the other."""
    if tensor.data is None and all(tensor.index != other.index for other in taken):
        return tensor
    copy = child.temporary(tensor.shape, tensor)
    child.emit("RESHAPE", [tensor, child.literal(np.asarray(tensor.shape, np.int32), "shape")], [copy])
    return copy


def _condition(name: str, operands: Sequence[Tensor]) -> Subgraph:
    """Whether there is a step to come and the last one said to go on."""
    writer = GraphWriter()
    inputs = [writer.tensor(f"operand_{i}", t.shape, t.dtype) for i, t in enumerate(operands)]
    more, both = (writer.tensor(part, ONE, TRUTH) for part in ("more", "both"))
    writer.operator("LESS", inputs[:2], [more], "LessOptions")
    writer.operator("LOGICAL_AND", [more, inputs[2]], [both], "LogicalAndOptions")
    return Subgraph(name, writer, tuple(inputs), (both,))
