"""Operators on the bits of integers, by arithmetic that every runtime has.

Source: ONNX's definitions of BitShift (opsets 11 and 28), BitwiseAnd, BitwiseOr, BitwiseXor, BitwiseNot (18) and BitCast (26).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from compiler.decompose.builder import Builder
from compiler.decompose.ops.integers import back
from compiler.decompose.table import Undecomposable, decomposes

BITS = {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64}
_PIECE = 24  # bits that float32 holds exactly
_DIGIT = 4  # bits looked up at a time: two digits make a table of 256


@decomposes("BitwiseNot")
def bitwise_not(b: Builder) -> None:
    """-1 - x"""
    wide = _wide(b.x.dtype)
    b.output(back(b, b.op("Sub", np.asarray(-1, wide), _as(b, b.x.name, wide))))


@decomposes("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def bitwise(b: Builder) -> None:
    """Digit by digit of base 16, looked up in a table of all pairs."""
    pairs = np.arange(256)
    combine: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "BitwiseAnd": np.bitwise_and,
        "BitwiseOr": np.bitwise_or,
        "BitwiseXor": np.bitwise_xor,
    }
    table = combine[b.node.op_type](pairs >> _DIGIT, pairs & 15).astype(np.int32)
    kind = b.x.dtype
    wide = _wide(kind)
    left, right = (_pieces(b, _as(b, name, wide), BITS[kind.name], wide) for name in b.node.input)
    total: str | None = None
    for place, (x, y) in enumerate(zip(left, right, strict=True)):
        digits = 8 if wide == np.int32 else _PIECE // _DIGIT
        piece = _joined(b, x, y, table, min(digits, BITS[kind.name] // _DIGIT))
        if wide == np.int64:
            piece = b.op("Mul", _as(b, piece, wide), np.asarray(1 << (_PIECE * place), np.int64))
        total = piece if total is None else b.op("Add", total, piece)
    assert total is not None
    b.output(back(b, total))


def _joined(b: Builder, x: str, y: str, table: np.ndarray, digits: int) -> str:
    total: str | None = None
    for place in range(digits):
        pair = b.op("Add", b.op("Mul", _digit(b, x, place), np.asarray(16, np.int32)), _digit(b, y, place))
        weight = np.asarray(1 << (_DIGIT * place), np.int32)
        value = b.op("Mul", b.op("Gather", table, pair), weight)
        total = value if total is None else b.op("Add", total, value)
    assert total is not None
    return total


def _digit(b: Builder, name: str, place: int) -> str:
    """Digit ``place`` of an int32 in two's complement."""
    weight = np.asarray(1 << (_DIGIT * place), np.int32)
    if place:
        name = b.op("Div", b.op("Sub", name, b.op("Mod", name, weight)), weight)
    return b.op("Mod", name, np.asarray(16, np.int32))


def _pieces(b: Builder, name: str, bits: int, wide: np.dtype) -> list[str]:
    """``name`` as one int32; an int64 as three of 24 bits, which float32 carries over without loss."""
    if wide == np.int32:
        return [name]
    found, below = [], None
    for place in range(-(-bits // _PIECE)):
        above = name
        if _PIECE * (place + 1) < bits:
            above = b.op("Mod", name, np.asarray(1 << (_PIECE * (place + 1)), np.int64))
        piece = above if below is None else b.op("Sub", above, below)
        scale = np.asarray(2.0 ** (-_PIECE * place), np.float32)
        number = b.op("Mul", b.op("Cast", piece, to=TensorProto.FLOAT), scale)
        found.append(b.op("Cast", number, to=TensorProto.INT32))
        below = above
    return found


@decomposes("BitShift")
def bit_shift(b: Builder) -> None:
    """Left: x 2^s. Right: floor(x / 2^s), which fills in sign bits; an amount outside 0..bits-1 leaves the fill alone."""
    kind = b.x.dtype
    wide = np.dtype(np.int64) if kind.name == "uint32" else _wide(kind)
    bits = BITS[kind.name]
    x, amount = _as(b, b.x.name, wide), _as(b, b.node.input[1], np.dtype(np.int64))
    left = b.attribute("direction", "LEFT") == "LEFT"
    last = bits - 1 if left or wide.itemsize * 8 > bits else bits - 2  # 2^(bits - 1) is negative in its own width
    fits = b.op("And", b.op("Not", b.op("Less", amount, np.asarray(0))), b.op("Less", amount, np.asarray(last + 1)))
    safe = b.op("Where", fits, amount, np.asarray(0))
    powers = np.asarray([1 << s for s in range(bits)], np.uint64).astype(wide)
    power = b.op("Gather", powers, safe)
    if left:
        b.output(back(b, b.op("Where", fits, b.op("Mul", x, power), np.zeros((), wide))))
        return
    negative = b.op("Less", x, np.zeros((), wide))
    moved = b.op("Div", b.op("Sub", x, b.op("Mod", x, power)), power)
    filled = b.op("Where", fits, moved, b.op("Where", negative, np.asarray(-1, wide), np.zeros((), wide)))
    b.output(back(b, filled if kind.name != "uint64" else _unfilled(b, filled, negative, amount)))


def _unfilled(b: Builder, name: str, negative: str, amount: str) -> str:
    """uint64 as int64: zeros instead of sign bits, so 2^(64 - s) is added to what was negative."""
    fill = np.asarray([0, *(1 << (64 - s) for s in range(1, 64)), 1], np.uint64).astype(np.int64)
    where = b.op("Min", b.op("Max", amount, np.asarray(-1)), np.asarray(64))
    where = b.op("Where", b.op("Less", where, np.asarray(0)), np.asarray(64), where)
    return b.op("Add", name, b.op("Where", negative, b.op("Gather", fill, where), np.asarray(0)))


@decomposes("BitCast")
def bit_cast(b: Builder) -> None:
    """Between integers of one width a cast; the bits of floats need an operator of the runtime's own."""
    if not {b.x.dtype.kind, b.y.dtype.kind} <= set("iub"):
        raise Undecomposable("the bits of a float")
    b.output(b.op("Cast", b.x.name, to=helper.np_dtype_to_tensor_dtype(b.y.dtype)))


def _wide(dtype: np.dtype) -> np.dtype:
    if dtype.name not in BITS:
        raise Undecomposable(f"its input is {dtype}")
    return np.dtype(np.int64 if dtype.itemsize == 8 else np.int32)


def _as(b: Builder, name: str, dtype: np.dtype) -> str:
    return b.op("Cast", name, to=helper.np_dtype_to_tensor_dtype(dtype))
