"""Arithmetic on integers whose type a runtime's kernels lack, by way of int32 or int64, exactly.

uint64 travels as the int64 of the same bits: sums and products are the same, and its order is int64's with the top bit turned.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes

# The type whose kernels compute for another: every sum and product has the right low bits there.
WIDE = {
    "int8": TensorProto.INT32,
    "int16": TensorProto.INT32,
    "uint8": TensorProto.INT32,
    "uint16": TensorProto.INT32,
    "uint32": TensorProto.INT64,
    "uint64": TensorProto.INT64,
}
_WRAPPING = ("Add", "Sub", "Mul")
_ORDERED = ("Min", "Max")
_LOWEST = np.asarray(np.iinfo(np.int64).min)
_ROUNDS = 5  # each leaves at most 2^-21 of the remainder


def back(b: Builder, name: str) -> str:
    """``name`` cast to the type of the node's first output; a cast keeps the low bits."""
    return b.op("Cast", name, to=helper.np_dtype_to_tensor_dtype(b.y.dtype))


@decomposes("Add", "Sub", "Mul", "Div", "Min", "Max", "Abs", "Neg")
def narrow_arithmetic(b: Builder) -> None:
    """Computed in the wide type (a product of 16-bit numbers fits), and cast back."""
    kind, op_type = b.x.dtype.name, b.node.op_type
    if kind == "int64" and op_type == "Div":
        b.output(quotient(b, b.x.name, b.node.input[1]))
        return
    if kind == "int64" and op_type == "Abs":
        b.output(b.op("Where", b.op("Less", b.x.name, np.asarray(0)), b.op("Neg", b.x.name), b.x.name))
        return
    if kind not in WIDE:
        raise Undecomposable(f"its input is {b.x.dtype}")
    wide = [b.op("Cast", name, to=WIDE[kind]) for name in b.node.input]
    if kind == "uint64" and op_type not in _WRAPPING:
        b.output(back(b, _unsigned(b, wide)))
        return
    result = wide[0] if len(wide) > 1 else b.op(op_type, wide[0])
    for other in wide[1:]:
        result = b.op(op_type, result, other)
    b.output(back(b, result))


def _unsigned(b: Builder, operands: list[str]) -> str:
    if b.node.op_type == "Div":
        return _unsigned_quotient(b, operands[0], operands[1])
    if b.node.op_type not in _ORDERED:
        raise Undecomposable(f"{b.node.op_type} of uint64 has no meaning")
    result = turned(b, operands[0])
    for other in operands[1:]:
        result = b.op(b.node.op_type, result, turned(b, other))
    return turned(b, result)


def turned(b: Builder, name: str) -> str:
    """An int64 with its top bit turned: ordered as the uint64 of the same bits."""
    return b.op("Add", name, _LOWEST)


def quotient(b: Builder, x: str, y: str) -> str:
    """x / y in int64, toward zero: float32 estimates of what is left, each a little too small, and a last step by comparison."""
    total: str | None = None
    rest = x
    divisor = b.op("Cast", y, to=TensorProto.FLOAT)
    shrink = b.constant(1 - 2.0**-22, "float32")
    for _ in range(_ROUNDS):
        estimate = b.op("Mul", b.op("Div", b.op("Cast", rest, to=TensorProto.FLOAT), divisor), shrink)
        step = b.op("Cast", estimate, to=TensorProto.INT64)
        rest = b.op("Sub", rest, b.op("Mul", step, y))
        total = step if total is None else b.op("Add", total, step)
    assert total is not None
    # Magnitudes compare as uint64: that of -2^63 has the same bits as the number itself.
    short = b.op("Not", b.op("Less", turned(b, _size(b, rest)), turned(b, _size(b, y))))
    differ = b.op("Xor", b.op("Less", x, np.asarray(0)), b.op("Less", y, np.asarray(0)))
    unit = b.op("Where", differ, np.asarray(-1), np.asarray(1))
    return b.op("Add", total, b.op("Where", short, unit, np.asarray(0)))


def _size(b: Builder, name: str) -> str:
    return b.op("Where", b.op("Less", name, np.asarray(0)), b.op("Neg", name), name)


def _unsigned_quotient(b: Builder, x: str, y: str) -> str:
    """Of the bits of uint64: twice the quotient of half of x, plus one where the rest still holds y; y above 2^63 goes in once."""
    half = b.op("Sub", x, b.op("Mod", x, np.asarray(2)))
    half = quotient(b, half, b.constant(np.asarray(2)))
    half = b.op("Where", b.op("Less", x, np.asarray(0)), b.op("Sub", half, _LOWEST), half)
    guess = b.op("Mul", quotient(b, half, y), np.asarray(2))
    rest = b.op("Sub", x, b.op("Mul", guess, y))
    fits = b.op("Not", b.op("Less", turned(b, rest), turned(b, y)))
    small = b.op("Add", guess, b.op("Cast", fits, to=TensorProto.INT64))
    large = b.op("Not", b.op("Less", turned(b, x), turned(b, y)))
    return b.op("Where", b.op("Less", y, np.asarray(0)), b.op("Cast", large, to=TensorProto.INT64), small)


@decomposes("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
def narrow_comparison(b: Builder) -> None:
    kind = b.x.dtype.name
    if kind not in WIDE:
        raise Undecomposable(f"its input is {b.x.dtype}")
    wide = [b.op("Cast", name, to=WIDE[kind]) for name in b.node.input]
    if kind == "uint64" and b.node.op_type != "Equal":
        wide = [turned(b, name) for name in wide]
    b.output(b.op(b.node.op_type, *wide))


@decomposes("Where")
def narrow_choice(b: Builder) -> None:
    chosen = b.operand(1)
    assert chosen is not None
    if chosen.dtype.name not in WIDE:
        raise Undecomposable(f"it chooses {chosen.dtype}")
    wide = [b.op("Cast", name, to=WIDE[chosen.dtype.name]) for name in b.node.input[1:]]
    b.output(back(b, b.op("Where", b.node.input[0], *wide)))


@decomposes("ReduceMax", "ReduceMin")
def boolean_extremum(b: Builder) -> None:
    """Any and all, as extrema of zeros and ones."""
    if b.x.dtype != np.bool_:
        raise Undecomposable(f"its input is {b.x.dtype}")
    attributes = {
        "keepdims": b.attribute("keepdims", 1),
        "noop_with_empty_axes": b.attribute("noop_with_empty_axes", 0),
    }
    number = b.op("Cast", b.x.name, to=TensorProto.INT32)
    # Compared, not cast: the extremum of nothing is the type's own limit.
    b.output(b.op("Greater", b.op(b.node.op_type, number, *b.node.input[1:], **attributes), np.asarray(0, np.int32)))


@decomposes("TopK")
def unsigned_top_k(b: Builder) -> None:
    """uint64 in the order of int64; the smallest integers are the largest of -1 - x, which cannot overflow."""
    kind = b.x.dtype.name
    attributes = {"axis": b.attribute("axis", -1), "sorted": b.attribute("sorted", 1)}
    if kind == "uint64":
        source = turned(b, b.op("Cast", b.x.name, to=TensorProto.INT64))
        first = b.op("TopK", source, b.node.input[1], outputs=2, largest=b.attribute("largest", 1), **attributes)
        values = turned(b, first)
    elif kind in ("int32", "int64") and not b.attribute("largest", 1):
        minus = b.like(-1)
        first = b.op("TopK", b.op("Sub", minus, b.x.name), b.node.input[1], outputs=2, **attributes)
        values = b.op("Sub", minus, first)
    else:
        raise Undecomposable("the runtime's own operator is needed")
    b.output(back(b, values))
    b.output(b.nth(first, 1), 1)


@decomposes("Pow")
def mixed_power(b: Builder) -> None:
    """A float to an integer power (exact below 2^24), an integer to a float one, an integer to an integer one by squaring."""
    exponent = b.operand(1)
    assert exponent is not None
    if b.x.dtype.kind == "f":
        if exponent.dtype.kind not in "iu":
            raise Undecomposable("the runtime's own operator is needed")
        name = b.op("Cast", exponent.name, to=TensorProto.INT64) if exponent.dtype == np.uint64 else exponent.name
        b.output(b.op("Pow", b.x.name, b.op("Cast", name, to=TensorProto.FLOAT)))
    elif exponent.dtype.kind == "f":
        b.output(back(b, b.op("Pow", b.op("Cast", b.x.name, to=TensorProto.FLOAT), exponent.name)))
    else:
        b.output(back(b, _integer_power(b, exponent.name)))


def _integer_power(b: Builder, exponent: str) -> str:
    """The product of base^(2^k) over the exponent's bits. From 2^6 on only its parity counts: a base other than 0, 1 and -1 has
    overflowed by then."""
    wide = WIDE.get(b.x.dtype.name, TensorProto.INT32 if b.x.dtype == np.int32 else TensorProto.INT64)
    dtype = helper.tensor_dtype_to_np_dtype(wide)
    base, left = b.op("Cast", b.x.name, to=wide), b.op("Cast", exponent, to=TensorProto.INT32)
    two, zero = np.asarray(2, np.int32), np.asarray(0, np.int32)
    bits = 7
    large = b.op("Add", np.asarray(2**bits - 2, np.int32), b.op("Mod", left, two))
    left = b.op("Where", b.op("Less", left, np.asarray(2**bits, np.int32)), left, large)
    one = np.ones((), dtype)
    result = b.op("Where", b.op("Less", left, zero), np.zeros((), dtype), one)
    for k in range(bits):
        bit = b.op("Mod", left, two)
        result = b.op("Mul", result, b.op("Where", b.op("Equal", bit, two - 1), base, one))
        if k < bits - 1:
            left, base = b.op("Div", b.op("Sub", left, bit), two), b.op("Mul", base, base)
    return result
