"""Element-wise operators: they work in whatever axis order their operands already have."""

from __future__ import annotations

import numpy as np
from onnx import helper

from compiler.importers.tflite.builder import Builder, Perm, Unsupported, identity
from compiler.importers.tflite.reader import Operator, enum_names
from compiler.importers.tflite.table import reads

_UNARY = {
    "ABS": "Abs",
    "NEG": "Neg",
    "EXP": "Exp",
    "LOG": "Log",
    "SQRT": "Sqrt",
    "SIN": "Sin",
    "COS": "Cos",
    "FLOOR": "Floor",
    "CEIL": "Ceil",
    "ROUND": "Round",
    "SIGN": "Sign",
    "LOGICAL_NOT": "Not",
}
_BINARY = {
    "ADD": "Add",
    "SUB": "Sub",
    "MUL": "Mul",
    "DIV": "Div",
    "MAXIMUM": "Max",
    "MINIMUM": "Min",
    "POW": "Pow",
    "EQUAL": "Equal",
    "LESS": "Less",
    "LESS_EQUAL": "LessOrEqual",
    "GREATER": "Greater",
    "GREATER_EQUAL": "GreaterOrEqual",
    "LOGICAL_AND": "And",
    "LOGICAL_OR": "Or",
    "BITWISE_XOR": "BitwiseXor",
}
_FUSING = ("ADD", "SUB", "MUL", "DIV")


def common_perm(b: Builder, op: Operator) -> Perm:
    """The axis order of the first operand of full rank that has one of its own."""
    rank = len(b.shape(op.outputs[0]))
    perms = [b.perm(i) for i in op.inputs if len(b.shape(i)) == rank]
    return next((perm for perm in perms if perm != identity(rank)), identity(rank))


def operand(b: Builder, index: int, perm: Perm) -> str:
    """A tensor as an operand of nodes that work in the order ``perm``; one of lower rank gains leading axes first."""
    shape, rank = b.shape(index), len(perm)
    if perm == identity(rank) or not shape:
        return b.read(index)
    if len(shape) == rank:
        return b.read(index, perm)
    lifted = (1,) * (rank - len(shape)) + shape
    values = b.values(index)
    if values is not None:
        return b.constant(values.reshape(lifted).transpose(perm))
    return b.emit("Transpose", [b.emit("Reshape", [b.read(index), b.ints(lifted)])], perm=list(perm))


def _operands(b: Builder, op: Operator) -> tuple[list[str], Perm]:
    perm = common_perm(b, op)
    return [operand(b, i, perm) for i in op.inputs], perm


@reads(*_UNARY)
def unary(b: Builder, op: Operator) -> None:
    perm = b.perm(op.inputs[0])
    b.bind(op.outputs[0], b.emit(_UNARY[op.type], [b.read(op.inputs[0], perm)]), perm)


@reads("SQUARE", "RSQRT", "ZEROS_LIKE")
def from_itself(b: Builder, op: Operator) -> None:
    perm = b.perm(op.inputs[0])
    x = b.read(op.inputs[0], perm)
    if op.type == "SQUARE":
        result = b.emit("Mul", [x, x])
    elif op.type == "RSQRT":
        result = b.emit("Reciprocal", [b.emit("Sqrt", [x])])
    else:
        result = b.emit("Sub", [x, x])
    b.bind(op.outputs[0], result, perm)


@reads(*_BINARY)
def binary(b: Builder, op: Operator) -> None:
    """``DIV`` of integers rounds toward zero in both; ``ADD`` and its like carry a fused activation."""
    operands, perm = _operands(b, op)
    result = b.emit(_BINARY[op.type], operands)
    if op.type in _FUSING:
        b.finish(op, result, perm)
    else:
        b.bind(op.outputs[0], result, perm)


@reads("NOT_EQUAL", "SQUARED_DIFFERENCE", "FLOOR_DIV", "FLOOR_MOD", "ATAN2")
def composed(b: Builder, op: Operator) -> None:
    if op.type == "ATAN2":
        raise Unsupported("ONNX has no arc tangent of two operands")
    operands, perm = _operands(b, op)
    floating = b.tensor(op.outputs[0]).dtype == "float32"
    if op.type == "NOT_EQUAL":
        result = b.emit("Not", [b.emit("Equal", operands)])
    elif op.type == "SQUARED_DIFFERENCE":
        difference = b.emit("Sub", operands)
        result = b.emit("Mul", [difference, difference])
    elif floating and op.type == "FLOOR_DIV":
        result = b.emit("Floor", [b.emit("Div", operands)])
    elif floating:
        result = _floating_modulo(b, *operands)
    else:
        rest = b.emit("Mod", operands)  # the sign of the divisor, as ONNX's integer Mod has it
        result = rest if op.type == "FLOOR_MOD" else b.emit("Div", [b.emit("Sub", [operands[0], rest]), operands[1]])
    b.bind(op.outputs[0], result, perm)


def _floating_modulo(b: Builder, x: str, y: str) -> str:
    """C's fmod, moved by the divisor where their signs differ. Source: kernels/internal/reference/binary_function.h."""
    zero = b.constant(np.zeros((), np.float32))
    rest = b.emit("Mod", [x, y], fmod=1)
    opposite = b.emit("Xor", [b.emit("Less", [rest, zero]), b.emit("Less", [y, zero])])
    whole = b.emit("Equal", [rest, zero])
    moved = b.emit("And", [opposite, b.emit("Not", [whole])])
    return b.emit("Where", [moved, b.emit("Add", [rest, y]), rest])


@reads("ADD_N")
def add_n(b: Builder, op: Operator) -> None:
    operands, perm = _operands(b, op)
    b.bind(op.outputs[0], b.emit("Sum", operands), perm)


@reads("SELECT", "SELECT_V2")
def select(b: Builder, op: Operator) -> None:
    """SELECT's condition of rank 1 chooses rows; SELECT_V2 broadcasts as ONNX does."""
    condition, rank = b.shape(op.inputs[0]), len(b.shape(op.outputs[0]))
    if op.type == "SELECT" and len(condition) == 1 and rank > 1:
        rows = b.emit("Reshape", [b.read(op.inputs[0]), b.ints([condition[0]] + [1] * (rank - 1))])
        b.bind(op.outputs[0], b.emit("Where", [rows, b.read(op.inputs[1]), b.read(op.inputs[2])]))
        return
    operands, perm = _operands(b, op)
    b.bind(op.outputs[0], b.emit("Where", operands), perm)


@reads("CAST")
def cast(b: Builder, op: Operator) -> None:
    dtype = b.tensor(op.outputs[0]).dtype
    if dtype == "float16":
        dtype = "float32"  # the hub computes in float32
    try:
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except TypeError:
        raise Unsupported(f"it casts to {enum_names('TensorType').get(op.option('outDataType'), dtype)}") from None
    perm = b.perm(op.inputs[0])
    b.bind(op.outputs[0], b.emit("Cast", [b.read(op.inputs[0], perm)], to=element), perm)
