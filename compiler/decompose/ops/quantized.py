"""Operators on quantized tensors as their float forms between DequantizeLinear and QuantizeLinear.

Source: the ONNX operators' own definitions; the float forms round as the integer ones do where sums stay below 2^24.
"""

from __future__ import annotations

from onnx import helper

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("QLinearMatMul")
def qlinear_matmul(b: Builder) -> None:
    a = b.op("DequantizeLinear", *b.node.input[0:3])
    c = b.op("DequantizeLinear", *b.node.input[3:6])
    b.output(b.op("QuantizeLinear", b.op("MatMul", a, c), *b.node.input[6:8]))


@decomposes("QLinearConv")
def qlinear_conv(b: Builder) -> None:
    x = b.op("DequantizeLinear", *b.node.input[0:3])
    w = b.op("DequantizeLinear", *b.node.input[3:6], axis=0)
    arguments = [x, w]
    if b.operand(8) is not None:
        scale = b.op("Mul", b.node.input[1], b.node.input[4])
        arguments.append(b.op("Mul", b.op("Cast", b.node.input[8], to=1), scale))
    kept = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    attributes = {name: value for name in kept if (value := b.attribute(name, None)) is not None}
    b.output(b.op("QuantizeLinear", b.op("Conv", *arguments, **attributes), *b.node.input[6:8]))


RANGES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "int4": (-8, 7),
    "uint4": (0, 15),
}


@decomposes("QuantizeLinear")
def quantize_linear(b: Builder) -> None:
    """clip(round(x / scale) + zero_point), per tensor or along an axis; ties go to even."""
    low, high = _range(b.y.dtype.name)
    scale, zero = _shaped(b, 1), _shaped(b, 2) if b.operand(2) is not None else None
    moved = b.op("Round", b.op("Div", b.x.name, scale))
    if zero is not None:
        moved = b.op("Add", moved, b.op("Cast", zero, to=1))
    kept = b.op("Min", b.op("Max", moved, b.constant(low, "float32")), b.constant(high, "float32"))
    b.output(b.op("Cast", kept, to=helper.np_dtype_to_tensor_dtype(b.y.dtype)))


def _range(name: str) -> tuple[int, int]:
    if name not in RANGES:
        raise Undecomposable(f"its output is {name}")
    return RANGES[name]


@decomposes("DequantizeLinear")
def dequantize_linear(b: Builder) -> None:
    """(x - zero_point) * scale"""
    if b.x.constant is not None:
        raise Undecomposable("decoding a stored weight would undo its quantization")
    if b.x.dtype.name not in (*RANGES, "int32") or b.y.dtype.name != "float32":
        raise Undecomposable(f"its types are {b.x.dtype} and {b.y.dtype}")
    value = b.op("Cast", b.x.name, to=1)
    if b.operand(2) is not None:
        value = b.op("Sub", value, b.op("Cast", _shaped(b, 2), to=1))
    b.output(b.op("Mul", value, _shaped(b, 1)))


def _shaped(b: Builder, index: int) -> str:
    """Scale or zero point, shaped to broadcast along the node's axis; blocked ones are repeated."""
    operand = b.operand(index)
    assert operand is not None
    rank = len(b.x.shape)
    if len(operand.shape) == 0 or operand.shape == (1,):
        return b.reshape(operand.name, []) if operand.shape else operand.name
    axis = b.attribute("axis", 1) % rank
    if len(operand.shape) == 1:
        return b.reshape(operand.name, [-1 if i == axis else 1 for i in range(rank)])
    block = b.attribute("block_size", 0)
    shape = list(operand.shape)
    wide = b.op(
        "Concat", *[b.reshape(operand.name, [*shape[: axis + 1], 1, *shape[axis + 1 :]])] * block, axis=axis + 1
    )
    whole = b.reshape(wide, [*shape[:axis], shape[axis] * block, *shape[axis + 1 :]])
    return b.take(whole, axis, 0, b.x.shape[axis])
