"""Arithmetic on 8- and 16-bit integers by way of int32, whose kernels every runtime has."""

from __future__ import annotations

from onnx import TensorProto

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes

SMALL = {"int8": TensorProto.INT8, "int16": TensorProto.INT16, "uint8": TensorProto.UINT8}
BITS = {"int8": 8, "int16": 16, "uint8": 8}


@decomposes("Add", "Sub", "Mul", "Div", "Min", "Max", "Abs", "Neg")
def small_arithmetic(b: Builder) -> None:
    """Computed exactly in int32 (a product of 16-bit numbers fits); the cast back keeps the low bits, as the type does."""
    if b.x.dtype.name not in SMALL:
        raise Undecomposable(f"its input is {b.x.dtype}")
    wide = [b.op("Cast", name, to=TensorProto.INT32) for name in b.node.input]
    result = wide[0]
    if len(wide) == 1:
        result = b.op(b.node.op_type, result)
    for other in wide[1:]:
        result = b.op(b.node.op_type, result, other)
    b.output(b.op("Cast", result, to=SMALL[b.x.dtype.name]))


@decomposes("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
def small_comparison(b: Builder) -> None:
    if b.x.dtype.name not in SMALL:
        raise Undecomposable(f"its input is {b.x.dtype}")
    b.output(b.op(b.node.op_type, *(b.op("Cast", name, to=TensorProto.INT32) for name in b.node.input)))


@decomposes("Pow")
def mixed_power(b: Builder) -> None:
    """A float to an integer power; the exponent is exact in float32 below 2^24."""
    exponent = b.operand(1)
    if b.x.dtype.name != "float32" or exponent is None or exponent.dtype.name not in ("int32", "int64", *SMALL):
        raise Undecomposable("integers to a power need integer arithmetic")
    b.output(b.op("Pow", b.x.name, b.op("Cast", exponent.name, to=TensorProto.FLOAT)))
