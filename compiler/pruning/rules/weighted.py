"""Conv, ConvTranspose, Gemm and MatMul: where channels begin and end."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.pruning.flow import Edit, Flow, attribute, constant, couples, name_of, operand, shape_of
from compiler.pruning.types import Role


@couples("Conv")
def conv(flow: Flow, node: ir.Node) -> None:
    """weight: [out_channels, in_channels / group, *kernel], input channels on axis 1."""
    data, weight, bias = operand(node, 0), operand(node, 1), operand(node, 2)
    if constant(weight) is None or (bias is not None and constant(bias) is None):
        return flow.give_up(node, "its weight or bias is computed")
    assert data is not None and weight is not None
    groups, incoming = int(attribute(node, "group", 1)), flow.of(data)
    if incoming is not None and incoming.axis != 1:
        return flow.give_up(node, "the channels it reads lie on another axis than 1")
    shape = shape_of(weight)
    assert shape is not None
    if groups == 1:
        if incoming is not None:
            flow.bind(weight, node, 1, incoming.ids, Role.CONSUMES)
        return _produce(flow, node, weight, 0, bias, shape[0])
    if shape[1] != 1:
        flow.give_up(node, f"a grouped convolution ({groups} groups) that is not depthwise")
        flow.pin(flow.fresh(node, shape[0]), node, f"a grouped convolution ({groups} groups) that is not depthwise")
        return None
    if incoming is None:
        return None
    # Depthwise: output channel o is made from input channel o // multiplier alone (ONNX Conv, attribute group).
    ids = np.repeat(incoming.ids, shape[0] // groups)
    flow.bind(weight, node, 0, ids, Role.CARRIES)
    if bias is not None:
        flow.bind(bias, node, 0, ids, Role.CARRIES)
    flow.edits.append(Edit(name_of(node), incoming.ids))
    return flow.set(node.outputs[0], 1, ids)


@couples("ConvTranspose")
def conv_transpose(flow: Flow, node: ir.Node) -> None:
    """weight: [in_channels, out_channels / group, *kernel]."""
    data, weight, bias = operand(node, 0), operand(node, 1), operand(node, 2)
    incoming = flow.of(data)
    if int(attribute(node, "group", 1)) != 1:
        return flow.give_up(node, "a grouped transposed convolution")
    if constant(weight) is None or (bias is not None and constant(bias) is None):
        return flow.give_up(node, "its weight or bias is computed")
    if incoming is not None and incoming.axis != 1:
        return flow.give_up(node, "the channels it reads lie on another axis than 1")
    assert weight is not None
    shape = shape_of(weight)
    assert shape is not None
    if incoming is not None:
        flow.bind(weight, node, 0, incoming.ids, Role.CONSUMES)
    return _produce(flow, node, weight, 1, bias, shape[1])


@couples("Gemm")
def gemm(flow: Flow, node: ir.Node) -> None:
    """Y = alpha * A' * B' + beta * C with a constant B; C broadcasts towards [rows, out_features]."""
    data, weight, bias = operand(node, 0), operand(node, 1), operand(node, 2)
    incoming, array = flow.of(data), constant(weight)
    if array is None or (bias is not None and constant(bias) is None):
        return flow.give_up(node, "its weight or bias is computed")
    if int(attribute(node, "transA", 0)) or (incoming is not None and incoming.axis != 1):
        return flow.give_up(node, "the channels it reads do not lie on the summed axis")
    assert weight is not None
    out_axis = 0 if int(attribute(node, "transB", 0)) else 1
    if incoming is not None:
        flow.bind(weight, node, 1 - out_axis, incoming.ids, Role.CONSUMES)
    return _produce(flow, node, weight, out_axis, bias, array.shape[out_axis])


@couples("MatMul")
def matmul(flow: Flow, node: ir.Node) -> None:
    """[..., in_features] times a constant [in_features, out_features]."""
    data, weight = operand(node, 0), operand(node, 1)
    array, incoming, shape = constant(weight), flow.of(data), shape_of(data)
    if array is None or array.ndim != 2 or shape is None:
        return flow.give_up(node, "not a product with a constant matrix on the right")
    assert weight is not None
    if incoming is not None and incoming.axis != len(shape) - 1:
        return flow.give_up(node, "the channels it reads do not lie on the summed axis")
    if incoming is not None:
        flow.bind(weight, node, 0, incoming.ids, Role.CONSUMES)
    return _produce(flow, node, weight, 1, None, array.shape[1])


def _produce(flow: Flow, node: ir.Node, weight: ir.Value, axis: int, bias: ir.Value | None, count: int) -> None:
    output = node.outputs[0]
    ids = flow.fresh(node, count)
    flow.bind(weight, node, axis, ids, Role.PRODUCES)
    shape = shape_of(bias)
    if bias is not None and shape and shape[-1] == count and count > 1:
        flow.bind(bias, node, len(shape) - 1, ids, Role.PRODUCES)
    rank = shape_of(output)
    if rank is None:
        return flow.pin(ids, node, "its output has no static shape")
    return flow.set(output, 1 if node.op_type in ("Conv", "ConvTranspose") else len(rank) - 1, ids)
