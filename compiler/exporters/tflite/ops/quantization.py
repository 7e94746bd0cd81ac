"""QuantizeLinear and DequantizeLinear: the hub's pairs become parameters of int8 tensors.

Source: LiteRT 8-bit quantization specification (ai.google.dev/edge/litert/models/quantization_spec): int8 activations per
tensor, int8 weights with zero point 0 per tensor or per output channel, int32 bias with scale = s_input * s_weight; int16
activations have zero point 0 and take an int64 bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite.context import LoweringContext, Unsupported, name_of, shape_of
from compiler.exporters.tflite.quantized import QuantizedConstant, activation_quant, wide_params
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import QuantParams, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir


@lowers("QuantizeLinear")
def quantize_linear(context: LoweringContext, node: ir.Node) -> None:
    """q = clip(rint(x / scale) + zero_point, -128, 127)."""
    source = attr.first(node)
    quant = activation_quant(context, node)
    if quant is None:
        raise Unsupported(
            "it is not a per-tensor int8 or int16 quantization with constant parameters",
            "Quantize activations per tensor to int8.",
        )
    if node.outputs[0].is_graph_output() or any(
        use.node.op_type != "DequantizeLinear" for use in node.outputs[0].uses()
    ):
        raise Unsupported("its integer output is used as such", "Keep QuantizeLinear and DequantizeLinear in pairs.")
    perm = context.perm(source)
    if perm is None:
        perm = tuple(range(len(shape_of(source))))
    tensor = context.read(source, perm, stored=context.quant(source) is not None)
    context.bind(node.outputs[0], _clipped(context, node, context.quantize(tensor, quant)), perm)


def _clipped(context: LoweringContext, node: ir.Node, tensor: Tensor) -> Tensor:
    """``tensor`` within the hub's range where int16 without a zero point reaches further: a ReLU may be nothing else than this."""
    zero = context.constant(attr.operand(node, 2))
    if zero is None or zero.dtype not in (np.int16, np.uint16) or tensor.quant is None:
        return tensor
    scale = float(context.required_constant(node.inputs[1], "scale").reshape(()))
    limits, point = np.iinfo(zero.dtype), int(zero.reshape(()))
    low, high = (round((limit - point) * scale / tensor.quant.scale[0]) for limit in (limits.min, limits.max))
    for code, bound, needed in (("MAXIMUM", low, low > -32767), ("MINIMUM", high, high < 32767)):
        if needed:
            constant = context.writer.constant("bound", np.array(bound, np.int16), tensor.quant)
            result = context.temporary(tensor.shape, tensor, tensor.quant)
            context.emit(code, [tensor, constant], [result], "MaximumMinimumOptions")
            tensor = result
    return tensor


@lowers("DequantizeLinear")
def dequantize_linear(context: LoweringContext, node: ir.Node) -> None:
    """x = (q - zero_point) * scale; stays int8 until an operator asks for float."""
    source = attr.first(node)
    data = context.constant(source)
    if data is None:
        if context.quant(source) is None:
            raise Unsupported("its integer input is computed by another operator")
        if _activation(_parameters(context, node, None), context, node) != context.quant(source):
            raise Unsupported("its scale or zero point differs from those of the QuantizeLinear before it")
        context.alias(node.outputs[0], source)
        return
    context.set_quantized(node.outputs[0], QuantizedConstant(*_constant(context, node, data)))


def _activation(quant: QuantParams, context: LoweringContext, node: ir.Node) -> QuantParams:
    zero = context.constant(attr.operand(node, 2))
    if zero is None or zero.dtype not in (np.int16, np.uint16):
        return quant
    return wide_params(quant.scale[0], int(zero.reshape(())), zero.dtype)


def _constant(context: LoweringContext, node: ir.Node, data: np.ndarray) -> tuple[np.ndarray, QuantParams]:
    quant = _parameters(context, node, data)
    if data.dtype == np.uint8:
        return (data.astype(np.int16) - 128).astype(np.int8), quant
    if data.dtype == ml_dtypes.uint4:
        return (data.astype(np.int8) - 8).astype(ml_dtypes.int4), quant
    if data.dtype not in (np.int8, np.int16, np.int32, ml_dtypes.int4):
        raise Unsupported(f"constants of type {data.dtype} have no int8 form", "Quantize weights to int8.")
    return data, quant


def _parameters(context: LoweringContext, node: ir.Node, data: np.ndarray | None) -> QuantParams:
    scale = context.required_constant(node.inputs[1], "scale")
    zero_value = attr.operand(node, 2)
    zero = np.zeros(1, np.int8) if zero_value is None else context.required_constant(zero_value, "zero point")
    kind = zero.dtype if zero_value is not None else np.dtype(np.uint8) if data is None else data.dtype
    points = np.broadcast_to(zero.astype(np.int64), scale.shape if zero.size > 1 else scale.shape or (1,))
    points = points.reshape(-1) - {"uint8": 128, "uint4": 8}.get(kind.name, 0)
    shape = shape_of(node.outputs[0])
    axis = _axis(node) % len(shape) if scale.size > 1 else 0
    block = attr.integer(node, "block_size", 0) if scale.size > 1 else 0
    if scale.size > 1 and not block and scale.size != shape[axis]:
        raise Unsupported(f"{name_of(node.outputs[0])!r} has {scale.size} scales along an axis of {shape[axis]}")
    bits = 16 if zero.dtype == np.int16 else 8
    scales = tuple(float(s) for s in scale.reshape(-1).astype(np.float32))
    return QuantParams(scales, tuple(int(p) for p in points), axis, bits, block)


def _axis(node: ir.Node) -> int:
    return attr.integer(node, "axis", 1)
