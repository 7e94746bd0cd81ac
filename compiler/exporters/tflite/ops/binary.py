"""Operators on two or more operands that broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import NONE, LoweringContext, Unsupported, dtype_of, shape_of
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.ops.unary import need_type, note_island
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import QuantParams, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

# BroadcastBinaryFunction kernels take at most this rank when shapes differ.
MAX_BROADCAST_RANK = 5
FLOAT_OR_INT = ("float32", "int32", "int64")
ARITHMETIC = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV"}
COMPARISON = {
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
}
LOGICAL = {"And": "LOGICAL_AND", "Or": "LOGICAL_OR"}


def aligned(context: LoweringContext, value: ir.Value, perm: Perm, *, stored: bool = False) -> Tensor:
    """``value`` for an operator that works in ``perm``: leading axes of size 1 added as ONNX does, then ordered."""
    rank, wanted = len(shape_of(value)), len(perm)
    if rank == wanted:
        return context.read(value, perm, stored=stored)
    own = context.perm(value) or layout.identity(rank)
    tensor = context.read(value, own, stored=stored)
    tensor = context.reshape(tensor, (1,) * (wanted - rank) + tensor.shape)
    return context.transpose(tensor, layout.relative(layout.extended(own, wanted), perm))


def common_order(context: LoweringContext, values: Sequence[ir.Value], rank: int) -> Perm:
    """The order that most elements of the operands already have; constants have no say."""
    held = [(context.perm(value), int(np.prod(shape_of(value)))) for value in values]
    return layout.choose([(perm, count) for perm, count in held if perm is not None], rank)


def _operands(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _check_broadcast(values: Sequence[ir.Value], output: ir.Value) -> None:
    rank = len(shape_of(output))
    if rank > MAX_BROADCAST_RANK and len({shape_of(value) for value in values}) > 1:
        raise Unsupported(
            f"it broadcasts at rank {rank}, the kernels stop at {MAX_BROADCAST_RANK}", "Reshape the operands first."
        )


def _inputs(
    context: LoweringContext, values: Sequence[ir.Value], output: ir.Value, quant: QuantParams | None
) -> tuple[list[Tensor], Perm]:
    _check_broadcast(values, output)
    perm = common_order(context, values, len(shape_of(output)))
    return [aligned(context, value, perm, stored=quant is not None) for value in values], perm


@lowers(*ARITHMETIC, since=7)
def arithmetic(context: LoweringContext, node: ir.Node) -> None:
    code, values = ARITHMETIC[node.op_type], _operands(node)
    need_type(values[0], ("float32", "int32") if code == "DIV" else FLOAT_OR_INT)
    is_float = dtype_of(values[0]) == np.float32
    if is_float:
        activation, output = context.fused_activation(node.outputs[0])
    else:
        activation, output = NONE, node.outputs[0]
    quant = context.agreed(values, output) if code != "DIV" else None  # the specification lists no int8 DIV
    tensors, perm = _inputs(context, values, output, quant)
    result = context.produce(output, perm, quant)
    fields = {"potScaleInt16": False} if code in ("ADD", "SUB") and quant is not None and quant.bits == 16 else {}
    context.emit(code, tensors, [result], f"{code.title()}Options", fusedActivationFunction=activation, **fields)
    note_island(context, node, values, quant)


@lowers("Pow", since=7)
def power(context: LoweringContext, node: ir.Node) -> None:
    values = _operands(node)
    if {dtype_of(value).name for value in values} != {"float32"}:
        raise Unsupported("only float32 to the power of float32 has a kernel", "Cast both operands to float32.")
    tensors, perm = _inputs(context, values, node.outputs[0], None)
    context.emit("POW", tensors, [context.produce(node.outputs[0], perm)], "PowOptions")
    note_island(context, node, values, None)


@lowers("Min", "Max", since=8)
def extremum(context: LoweringContext, node: ir.Node) -> None:
    _fold(context, node, {"Min": "MINIMUM", "Max": "MAXIMUM"}[node.op_type], FLOAT_OR_INT)


@lowers("Sum", since=8)
def total(context: LoweringContext, node: ir.Node) -> None:
    _fold(context, node, "ADD", ("float32",))


def _fold(context: LoweringContext, node: ir.Node, code: str, types: tuple[str, ...]) -> None:
    values, output = _operands(node), node.outputs[0]
    need_type(values[0], types)
    if len(values) == 1:
        context.alias(output, values[0])
        return
    shared = {context.quant(value) for value in values}
    # The extrema compare codes, so they need one scale; a sum would need one for every partial sum.
    quant = shared.pop() if len(shared) == 1 and code != "ADD" else None
    tensors, perm = _inputs(context, values, output, quant)
    left = tensors[0]
    for right in tensors[1:-1]:
        part = context.temporary(np.broadcast_shapes(left.shape, right.shape), left)
        context.emit(code, [left, right], [part])
        left = part
    context.emit(code, [left, tensors[-1]], [context.produce(output, perm, quant)])
    note_island(context, node, values, quant)


@lowers(*COMPARISON, since=7)
def comparison(context: LoweringContext, node: ir.Node) -> None:
    values = _operands(node)
    types = (*FLOAT_OR_INT, "bool") if node.op_type == "Equal" else FLOAT_OR_INT
    need_type(values[0], types)
    tensors, perm = _inputs(context, values, node.outputs[0], None)
    context.emit(COMPARISON[node.op_type], tensors, [context.produce(node.outputs[0], perm)])


@lowers(*LOGICAL, since=7)
def logical(context: LoweringContext, node: ir.Node) -> None:
    tensors, perm = _inputs(context, _operands(node), node.outputs[0], None)
    context.emit(LOGICAL[node.op_type], tensors, [context.produce(node.outputs[0], perm)])


@lowers("Where", since=9)
def where(context: LoweringContext, node: ir.Node) -> None:
    values = _operands(node)
    need_type(values[1], (*FLOAT_OR_INT, "bool", "int8", "int16", "uint8", "uint16", "uint32", "uint64"))
    tensors, perm = _inputs(context, values, node.outputs[0], None)
    context.emit("SELECT_V2", tensors, [context.produce(node.outputs[0], perm)])
