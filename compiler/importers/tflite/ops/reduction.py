"""Reductions."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from compiler.importers.tflite.builder import Builder, Perm
from compiler.importers.tflite.reader import Operator
from compiler.importers.tflite.table import reads

_REDUCTIONS = {
    "MEAN": "ReduceMean",
    "SUM": "ReduceSum",
    "REDUCE_MAX": "ReduceMax",
    "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd",
    "REDUCE_ANY": "ReduceMax",
    "REDUCE_ALL": "ReduceMin",
}


@reads(*_REDUCTIONS)
def reduce(b: Builder, op: Operator) -> None:
    """Over constant axes. Booleans are reduced as integers: any is the maximum, all the minimum."""
    perm, rank = b.perm(op.inputs[0]), len(b.shape(op.inputs[0]))
    axes = {int(a) % rank for a in b.required(op, 1, "axes").reshape(-1)}
    keep = bool(op.option("keepDims", False))
    value = b.read(op.inputs[0], perm)
    logical = op.type in ("REDUCE_ANY", "REDUCE_ALL")
    if logical:
        value = b.emit("Cast", [value], to=TensorProto.INT32)
    positions = sorted(perm.index(a) for a in axes)
    result = b.emit(_REDUCTIONS[op.type], [value, b.ints(positions)], keepdims=int(keep))
    if logical:
        result = b.emit("Cast", [result], to=TensorProto.BOOL)
    b.bind(op.outputs[0], result, perm if keep else without(perm, axes))


def without(perm: Perm, axes: set[int]) -> Perm:
    """The order of the axes that remain when ``axes`` of the tensor are gone."""
    left = [axis for axis in perm if axis not in axes]
    ranks = {axis: i for i, axis in enumerate(sorted(left))}
    return tuple(ranks[axis] for axis in left)


@reads("ARG_MAX", "ARG_MIN")
def arg(b: Builder, op: Operator) -> None:
    perm, rank = b.perm(op.inputs[0]), len(b.shape(op.inputs[0]))
    axis = int(b.required(op, 1, "axis").reshape(-1)[0]) % rank
    name = "ArgMax" if op.type == "ARG_MAX" else "ArgMin"
    result = b.emit(name, [b.read(op.inputs[0], perm)], axis=perm.index(axis), keepdims=0)
    if b.tensor(op.outputs[0]).dtype != "int64":
        result = b.emit("Cast", [result], to=TensorProto.INT32)
    b.bind(op.outputs[0], result, without(perm, {axis}))


@reads("CUMSUM")
def cumsum(b: Builder, op: Operator) -> None:
    perm, rank = b.perm(op.inputs[0]), len(b.shape(op.inputs[0]))
    axis = int(b.required(op, 1, "axis").reshape(-1)[0]) % rank
    result = b.emit(
        "CumSum",
        [b.read(op.inputs[0], perm), b.constant(np.array(perm.index(axis), np.int64))],
        exclusive=int(op.option("exclusive", False)),
        reverse=int(op.option("reverse", False)),
    )
    b.bind(op.outputs[0], result, perm)
