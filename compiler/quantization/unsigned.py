"""The same numbers in uint8: q + 128 with zero point + 128, for kernels that are faster unsigned (onnxruntime on x86)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

OFFSET = 128


def to_uint8(model: ir.Model) -> ir.Model:
    """Rewrite the activations of a quantized hub, and constant operands of element-wise nodes, from int8 to uint8.

    Weights stay int8 with zero point 0 and biases int32: x86 kernels take uint8 activations with int8 weights. Every real
    value that the model can express, and every rounding, stays the same; int16 activations stay as they are. ``model`` is not
    modified.
    """
    result = model.clone()
    for node in result.graph:  # first, so that no weight follows the activations below by a zero point that they share
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer():
            _own_zero_point(result.graph, node)
    for node in result.graph:
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype == ir.DataType.INT8:
            _shift(result.graph, node.inputs[2])
            node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        elif node.op_type == "DequantizeLinear" and _is_operand(node):
            _shift(result.graph, node.inputs[0])
            _shift(result.graph, node.inputs[2])
        elif node.op_type == "DequantizeLinear":
            _own_zero_point(result.graph, node)
    return result


def _own_zero_point(graph: ir.Graph, node: ir.Node) -> None:
    """Give a weight a zero point that no other reads: onnxruntime's exact mode cannot load int8 initializers that are shared."""
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    if zero_point is None or zero_point.const_value is None or zero_point.dtype != ir.DataType.INT8:
        return
    if len(zero_point.uses()) > 1 and node.inputs[0] is not None:
        name = f"{node.inputs[0].name}_zero_point"
        while name in graph.initializers:
            name += "_"
        own = ir.val(name, const_value=ir.tensor(zero_point.const_value.numpy(), name=name))
        graph.register_initializer(own)
        node.replace_input_with(2, own)


def _is_operand(node: ir.Node) -> bool:
    """Whether ``node`` restores an int8 constant of an element-wise or same-scale node, not a weight."""
    codes = node.inputs[0]
    if codes is None or not codes.is_initializer() or codes.dtype != ir.DataType.INT8:
        return False
    weighted = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    return not any(user.op_type in weighted for user, _ in node.outputs[0].uses())


def _shift(graph: ir.Graph, value: ir.Value | None) -> None:
    assert value is not None and value.const_value is not None and value.name is not None
    codes = value.const_value.numpy()
    if codes.dtype == np.int8:  # a zero point shared by both nodes of a pair is shifted once
        shifted = ir.tensor((codes.astype(np.int16) + OFFSET).astype(np.uint8), name=value.name)
        value.const_value, value.type = shifted, ir.TensorType(ir.DataType.UINT8)
