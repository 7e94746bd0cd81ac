"""Reductions along constant axes, in whatever order the input is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, shape_of
from compiler.exporters.tflite.ops.unary import any_order, need_type, note_island
from compiler.exporters.tflite.table import lowers

if TYPE_CHECKING:
    import onnx_ir as ir

BUILTIN = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN"}


def _axes(context: LoweringContext, node: ir.Node, rank: int) -> list[int]:
    value = attr.operand(node, 1)
    axes = attr.integers(node, "axes") if value is None else [int(a) for a in context.required_constant(value, "axes")]
    if not axes:
        return [] if attr.integer(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted({axis % rank for axis in axes})


@lowers(*BUILTIN, since=13)
def reduce(context: LoweringContext, node: ir.Node) -> None:
    source, output = attr.first(node), node.outputs[0]
    need_type(source, ("float32", "int32", "int64"))
    rank = len(shape_of(source))
    axes = _axes(context, node, rank) if rank else []
    if not axes:
        context.alias(output, source)
        return
    keep = bool(attr.integer(node, "keepdims", 1))
    code = BUILTIN[node.op_type]
    perm = any_order(context, source)
    if code in ("MEAN", "SUM"):
        quant = context.agreed([source], output)
    else:  # the extrema keep the scale, so they are exact on integers
        quant = context.quant(source) if context.perm(source) else None
    x = context.read(source, perm, stored=quant is not None)
    result = context.produce(output, perm if keep else layout.without(perm, axes), quant)
    numbers = context.literal(np.asarray(sorted(perm.index(axis) for axis in axes), np.int32), "axes")
    context.emit(code, [x, numbers], [result], "ReducerOptions", keepDims=keep)
    note_island(context, node, [source], quant)
