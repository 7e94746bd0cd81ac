"""Operators that work position by position: numbers pass through, or meet and become one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.pruning.flow import Flow, Ids, constant, couples, operand, shape_of
from compiler.pruning.types import Role


@couples(
    "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Selu", "Celu", "Softplus", "Softsign",
    "Tanh", "Gelu", "Mish", "Swish", "ThresholdedRelu", "Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Floor",
    "Ceil", "Round", "Sign", "Sin", "Cos", "Identity", "Cast", "Dropout",
)  # fmt: skip
def unary(flow: Flow, node: ir.Node) -> None:
    """Only the first input has channels; Clip's limits and Dropout's ratio are scalars by definition."""
    incoming = flow.of(operand(node, 0))
    if incoming is None:
        return
    for output in node.outputs:  # Dropout's mask has its input's shape
        flow.set(output, incoming.axis, incoming.ids)


@couples("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu", "Where")
def broadcast(flow: Flow, node: ir.Node) -> None:
    """Operands align at their last axes (ONNX Broadcasting). Every operand must have one entry per channel, or one for all."""
    out_shape = shape_of(node.outputs[0])
    operands = [value for value in node.inputs if value is not None]
    labelled = [(value, found) for value in operands if (found := flow.of(value)) is not None]
    if not labelled:
        return None
    shapes = [shape_of(value) for value in operands]
    if out_shape is None or any(shape is None for shape in shapes):
        return flow.give_up(node, "its shapes are not static")
    rank = len(out_shape)
    axes = {rank - len(shape_of(value) or ()) + found.axis for value, found in labelled}
    if len(axes) != 1:
        return flow.give_up(node, "its operands have their channels on different axes")
    axis = axes.pop()
    wide = [found for _, found in labelled if len(found.ids) == out_shape[axis]]
    if not wide:
        return flow.give_up(node, "one channel is spread over many")
    for value, shape in zip(operands, shapes, strict=True):
        assert shape is not None
        _meet(flow, node, value, axis - (rank - len(shape)), shape, wide[0].ids)
    return flow.set(node.outputs[0], axis, wide[0].ids)


def _meet(flow: Flow, node: ir.Node, value: ir.Value, axis: int, shape: tuple[int, ...], ids: Ids) -> None:
    """One operand against the channels ``ids`` of the result."""
    found = flow.of(value)
    if axis < 0 or (shape[axis] == 1 and len(ids) > 1):
        if found is not None:
            flow.pin(found.ids, node, "one channel is spread over many")
    elif found is not None:
        flow.unite(ids, found.ids)
    elif constant(value) is not None:
        flow.bind(value, node, axis, ids, Role.CARRIES)
    else:
        flow.pin(ids, node, f"operand {value.name!r} has as many entries, and nothing says what they are")


@couples("BatchNormalization", "InstanceNormalization")
def normalisation(flow: Flow, node: ir.Node) -> None:
    """Scale, shift, mean and variance: [channels], channels on axis 1; every channel on its own."""
    incoming = flow.of(operand(node, 0))
    if incoming is None:
        return None
    parameters = [value for value in node.inputs[1:] if value is not None]
    if incoming.axis != 1 or any(constant(value) is None for value in parameters) or len(node.outputs) > 1:
        return flow.give_up(node, "not an inference-time normalisation of axis 1 with constant parameters")
    for value in parameters:
        flow.bind(value, node, 0, incoming.ids, Role.CARRIES)
    return flow.set(node.outputs[0], 1, incoming.ids)


@couples("Softmax", "LogSoftmax", "Hardmax")
def softmax(flow: Flow, node: ir.Node) -> None:
    """Along any axis but the channels' own, every channel is on its own."""
    incoming, shape = flow.of(operand(node, 0)), shape_of(operand(node, 0))
    if incoming is None:
        return None
    found = node.attributes.get("axis")
    axis = -1 if found is None else found.as_int()
    if shape is None or int(np.arange(len(shape))[axis]) == incoming.axis:
        return flow.give_up(node, f"{node.op_type} over the channels mixes them all")
    return flow.set(node.outputs[0], incoming.axis, incoming.ids)
