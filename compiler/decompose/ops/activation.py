"""Activations, and tests of floats, that no function body defines."""

from __future__ import annotations

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.ops.integers import WIDE, back
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("Softplus")
def softplus(b: Builder) -> None:
    """max(x, 0) + log(1 + e^-|x|): the standard's log(1 + e^x) overflows above 88."""
    x = b.x.name
    tail = b.op("Log", b.op("Add", b.op("Exp", b.op("Neg", b.op("Abs", x))), b.like(1.0)))
    b.output(b.op("Add", b.op("Relu", x), tail))


@decomposes("Elu")
def elu(b: Builder) -> None:
    """relu(x) + alpha (e^min(x, 0) - 1)"""
    negative = b.op("Sub", b.op("Exp", b.op("Min", b.x.name, b.like(0.0))), b.like(1.0))
    b.output(b.op("Add", b.op("Relu", b.x.name), b.op("Mul", negative, b.like(b.attribute("alpha", 1.0)))))


@decomposes("ThresholdedRelu")
def thresholded_relu(b: Builder) -> None:
    keep = b.op("Greater", b.x.name, b.like(b.attribute("alpha", 1.0)))
    b.output(b.op("Where", keep, b.x.name, b.like(0.0)))


@decomposes("Hardmax")
def hardmax(b: Builder) -> None:
    """One at the first maximum along the axis, zero elsewhere."""
    rank = len(b.x.shape)
    axis = b.attribute("axis", -1) % rank
    first = b.op("ArgMax", b.x.name, axis=axis, keepdims=1)
    positions = np.arange(b.x.shape[axis], dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(rank)])
    b.output(b.op("Cast", b.op("Equal", first, positions), to=1))


@decomposes("IsNaN")
def is_nan(b: Builder) -> None:
    """x != x"""
    b.output(b.op("Not", b.op("Equal", b.x.name, b.x.name)))


@decomposes("IsInf")
def is_inf(b: Builder) -> None:
    signs = []
    if b.attribute("detect_positive", 1):
        signs.append(np.inf)
    if b.attribute("detect_negative", 1):
        signs.append(-np.inf)
    if not signs:
        raise Undecomposable("it detects nothing")
    found = [b.op("Equal", b.x.name, b.like(sign)) for sign in signs]
    b.output(found[0] if len(found) == 1 else b.op("Or", *found))


@decomposes("Xor")
def xor(b: Builder) -> None:
    """a and not b, or b and not a"""
    first, second = b.x.name, b.node.input[1]
    left = b.op("And", first, b.op("Not", second))
    b.output(b.op("Or", left, b.op("And", second, b.op("Not", first))))


@decomposes("Mean", "Sum")
def total(b: Builder) -> None:
    result = b.node.input[0]
    for name in list(b.node.input)[1:]:
        result = b.op("Add", result, name)
    b.output(result if b.node.op_type == "Sum" else b.op("Div", result, b.like(len(b.node.input))))


@decomposes("Mod")
def mod(b: Builder) -> None:
    """fmod=1 takes the dividend's sign: x - y trunc(x / y); else the divisor's: x - y floor(x / y)."""
    x, y = b.x.name, b.node.input[1]
    kind = b.x.dtype.name
    if kind in WIDE:
        wide = [b.op("Cast", name, to=WIDE[kind]) for name in (x, y)]
        if kind == "uint64":
            rest = b.op("Sub", wide[0], b.op("Mul", b.op("Cast", b.op("Div", x, y), to=7), wide[1]))
        else:
            rest = b.op("Mod", *wide, fmod=b.attribute("fmod", 0))
        b.output(back(b, rest))
        return
    if kind in ("int32", "int64") and b.attribute("fmod", 0):  # the integer quotient is truncated
        b.output(b.op("Sub", x, b.op("Mul", y, b.op("Div", x, y))))
        return
    if kind != "float32":
        raise Undecomposable(f"its input is {kind}")
    quotient = b.op("Div", x, y)
    if b.attribute("fmod", 0):
        whole = b.op("Mul", b.op("Sign", quotient), b.op("Floor", b.op("Abs", quotient)))
    else:
        whole = b.op("Floor", quotient)
    b.output(_infinite_divisor(b, x, y, b.op("Sub", x, b.op("Mul", y, whole))))


def _infinite_divisor(b: Builder, x: str, y: str, rest: str) -> str:
    """Divided by an infinity, a number is its own remainder; of the divisor's sign where that is asked for."""
    divisor = b.operand(1)
    assert divisor is not None
    if divisor.constant is not None and not np.isinf(divisor.constant).any():
        return rest
    infinity = b.like(np.inf)
    whole = b.op("And", b.op("Equal", b.op("Abs", y), infinity), b.op("Less", b.op("Abs", x), infinity))
    own = x
    if not b.attribute("fmod", 0):
        own = b.op("Where", b.op("Less", b.op("Mul", x, y), b.like(0.0)), y, x)
    return b.op("Where", whole, own, rest)


@decomposes("Sign")
def sign(b: Builder) -> None:
    positive, negative = (b.op("Cast", b.op(name, b.x.name, b.like(0.0)), to=1) for name in ("Greater", "Less"))
    b.output(b.op("Sub", positive, negative))


@decomposes("Clip")
def clip(b: Builder) -> None:
    result = b.x.name
    for index, op_type in ((1, "Max"), (2, "Min")):
        bound = b.operand(index)
        if bound is not None:
            result = b.op(op_type, result, bound.name)
    b.output(result)


@decomposes("Dropout")
def dropout_mask(b: Builder) -> None:
    """At inference every element is kept, and the mask says so."""
    mode = b.operand(2)
    if mode is not None and (mode.constant is None or bool(mode.constant)):
        raise Undecomposable("it is in training mode")
    b.output(b.x.name)
    b.output(b.constant(np.ones(b.x.shape, np.bool_)), 1)


@decomposes("Mish")
def mish(b: Builder) -> None:
    """x n / (n + 2) with n = e^x (e^x + 2), which is x tanh(log(1 + e^x)) without the cancellation; above 20 it is x."""
    power = b.op("Exp", b.op("Min", b.x.name, b.like(20.0)))
    n = b.op("Mul", power, b.op("Add", power, b.like(2.0)))
    b.output(b.op("Mul", b.x.name, b.op("Div", n, b.op("Add", n, b.like(2.0)))))
