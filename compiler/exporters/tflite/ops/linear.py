"""Gemm and MatMul. A constant matrix goes to FULLY_CONNECTED ([out, in], per-channel scales on axis 0), else BATCH_MATMUL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, shape_of
from compiler.exporters.tflite.ops.binary import aligned
from compiler.exporters.tflite.ops.convolution import bias_tensor, weight_fits
from compiler.exporters.tflite.ops.unary import need_type, note_island, scalar
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_BATCH_RANK = 5  # batch_matmul.cc broadcasts up to here


@lowers("Gemm", since=7)
def gemm(context: LoweringContext, node: ir.Node) -> None:
    """alpha * A' B' + beta * C."""
    source, weight, bias = attr.first(node), node.inputs[1], attr.operand(node, 2)
    assert weight is not None
    need_type(source, ("float32",))
    out_axis = 0 if attr.integer(node, "transB", 0) else 1
    plain = attr.real(node, "alpha", 1.0) == 1.0 and (bias is None or attr.real(node, "beta", 1.0) == 1.0)
    vector = bias is None or (context.is_constant(bias) and shape_of(bias) == (shape_of(weight)[out_axis],))
    if plain and vector and context.is_constant(weight):
        order = (1, 0) if attr.integer(node, "transA", 0) else (0, 1)
        _fully_connected(context, node, order, out_axis, bias)
    else:
        _general_gemm(context, node)


def _fully_connected(
    context: LoweringContext, node: ir.Node, order: layout.Perm, out_axis: int, bias: ir.Value | None
) -> None:
    source, weight = attr.first(node), node.inputs[1]
    assert weight is not None
    activation, output = context.fused_activation(node.outputs[0])
    quant = context.agreed([source], output) if weight_fits(context, weight, out_axis) else None
    x = context.read(source, order, stored=quant is not None)
    hybrid = quant is None and context.hybrid(weight, out_axis)
    filters = context.read(weight, (out_axis, 1 - out_axis), stored=quant is not None or hybrid)
    vector = bias_tensor(context, bias, filters.shape[0], x.quant if quant else None, filters)
    result = context.produce(output, layout.identity(len(shape_of(output))), quant)
    context.emit(
        "FULLY_CONNECTED",
        [x, filters, vector],
        [result],
        "FullyConnectedOptions",
        fusedActivationFunction=activation,
        keepNumDims=len(x.shape) != 2,
        asymmetricQuantizeInputs=hybrid,
    )
    if quant is None and context.agreed([source], output) is not None:
        context.note(
            f"{node.op_type} {node.name!r} runs in float between DEQUANTIZE and QUANTIZE: its weight does not fit"
        )


def _general_gemm(context: LoweringContext, node: ir.Node) -> None:
    source, weight, bias = attr.first(node), node.inputs[1], attr.operand(node, 2)
    assert weight is not None
    a, adj_a = _matrix(context, source, flip=bool(attr.integer(node, "transA", 0)))
    b, adj_b = _matrix(context, weight, flip=bool(attr.integer(node, "transB", 0)))
    output = node.outputs[0]
    alpha, beta = attr.real(node, "alpha", 1.0), attr.real(node, "beta", 1.0)
    steps: list[tuple[str, Tensor]] = [] if alpha == 1.0 else [("MUL", scalar(context, alpha))]
    if bias is not None:
        c = aligned(context, bias, (0, 1))
        if beta != 1.0:
            scaled = context.temporary(c.shape, c)
            context.emit("MUL", [c, scalar(context, beta)], [scaled], "MulOptions")
            c = scaled
        steps.append(("ADD", c))
    shape = shape_of(output)
    current = context.temporary(shape, a) if steps else context.produce(output, (0, 1))
    context.emit("BATCH_MATMUL", [a, b], [current], "BatchMatMulOptions", adjX=adj_a, adjY=adj_b)
    for position, (code, argument) in enumerate(steps):
        is_last = position == len(steps) - 1
        result = context.produce(output, (0, 1)) if is_last else context.temporary(shape, a)
        context.emit(code, [current, argument], [result], f"{code.title()}Options")
        current = result
    note_island(context, node, [source], None)


def _matrix(
    context: LoweringContext, value: ir.Value, *, flip: bool = False, stored: bool = False
) -> tuple[Tensor, bool]:
    """The operand's tensor and whether BATCH_MATMUL must swap its last two axes: a lazy transpose costs nothing here."""
    rank = len(shape_of(value))
    normal = layout.identity(rank)
    swapped = (*normal[:-2], normal[-1], normal[-2])
    if context.perm(value) == swapped and rank > 1:
        return context.read(value, swapped, stored=stored), not flip
    return context.read(value, normal, stored=stored), flip


@lowers("MatMul")
def matmul(context: LoweringContext, node: ir.Node) -> None:
    source, weight, output = attr.first(node), node.inputs[1], node.outputs[0]
    assert weight is not None
    need_type(source, ("float32",))
    ranks = len(shape_of(source)), len(shape_of(weight))
    if max(ranks) > MAX_BATCH_RANK or 0 in ranks:
        raise Unsupported(f"its operands have ranks {ranks}; the kernel takes 1 to {MAX_BATCH_RANK}", "Reshape them.")
    if ranks[0] >= 2 and ranks[1] == 2 and context.is_constant(weight):
        _fully_connected(context, node, layout.identity(ranks[0]), 1, None)
        return
    if 1 in ranks:
        _vector_matmul(context, source, weight, output)
        return
    quant = context.agreed([source, weight], output)
    a, adj_a = _matrix(context, source, stored=quant is not None)
    b, adj_b = _matrix(context, weight, stored=quant is not None)
    result = context.produce(output, layout.identity(len(shape_of(output))), quant)
    context.emit("BATCH_MATMUL", [a, b], [result], "BatchMatMulOptions", adjX=adj_a, adjY=adj_b)
    note_island(context, node, [source, weight], quant)


def _vector_matmul(context: LoweringContext, left: ir.Value, right: ir.Value, output: ir.Value) -> None:
    """numpy's rule: a vector becomes a row on the left, a column on the right, and its axis is dropped again."""
    a = context.read(left, layout.identity(len(shape_of(left))))
    b = context.read(right, layout.identity(len(shape_of(right))))
    a = context.reshape(a, (1, *a.shape)) if len(a.shape) == 1 else a
    b = context.reshape(b, (*b.shape, 1)) if len(b.shape) == 1 else b
    full = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    result = context.temporary(full, a)
    context.emit("BATCH_MATMUL", [a, b], [result], "BatchMatMulOptions")
    context.bind(output, context.reshape(result, shape_of(output)), layout.identity(len(shape_of(output))))
