"""Gathering, scattering, picking."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from compiler.importers.tflite.builder import Builder, Unsupported
from compiler.importers.tflite.reader import Operator
from compiler.importers.tflite.table import reads


@reads("GATHER")
def gather(b: Builder, op: Operator) -> None:
    batch_dims, rank = int(op.option("batchDims", 0)), len(b.shape(op.inputs[0]))
    axis = int(op.option("axis", 0)) % rank
    data, indices = b.read(op.inputs[0]), b.read(op.inputs[1])
    if batch_dims == 0:
        b.bind(op.outputs[0], b.emit("Gather", [data, indices], axis=axis))
        return
    if batch_dims != axis:
        raise Unsupported(f"it gathers along axis {axis} behind {batch_dims} batch axes")
    shape = b.shape(op.inputs[1])
    long = b.emit("Cast", [indices], to=TensorProto.INT64)
    places = b.emit("Reshape", [long, b.ints([*shape, 1])])
    b.bind(op.outputs[0], b.emit("GatherND", [data, places], batch_dims=batch_dims))


@reads("GATHER_ND")
def gather_nd(b: Builder, op: Operator) -> None:
    indices = b.emit("Cast", [b.read(op.inputs[1])], to=TensorProto.INT64)
    b.bind(op.outputs[0], b.emit("GatherND", [b.read(op.inputs[0]), indices]))


@reads("SCATTER_ND")
def scatter_nd(b: Builder, op: Operator) -> None:
    """Updates are added up into zeros."""
    zeros = b.constant(np.zeros(b.shape(op.outputs[0]), b.tensor(op.outputs[0]).dtype))
    indices = b.emit("Cast", [b.read(op.inputs[0])], to=TensorProto.INT64)
    b.bind(op.outputs[0], b.emit("ScatterND", [zeros, indices, b.read(op.inputs[1])], reduction="add"))


@reads("TOPK_V2")
def topk(b: Builder, op: Operator) -> None:
    count = b.ints([int(b.required(op, 1, "k").reshape(-1)[0])])
    values, places = b.emit_many("TopK", [b.read(op.inputs[0]), count], 2, axis=-1)
    b.bind(op.outputs[0], values)
    b.bind(op.outputs[1], b.emit("Cast", [places], to=TensorProto.INT32))


@reads("ONE_HOT")
def one_hot(b: Builder, op: Operator) -> None:
    """Inputs: indices, depth, value on, value off. ONNX counts negative indices from the end; TFLite leaves them off."""
    on, off = b.required(op, 2, "value"), b.required(op, 3, "value")
    depth = int(b.required(op, 1, "depth").reshape(-1)[0])
    rank = len(b.shape(op.outputs[0]))
    axis = int(op.option("axis", -1)) % rank
    classes = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(rank)])
    places = b.emit("Unsqueeze", [b.emit("Cast", [b.read(op.inputs[0])], to=TensorProto.INT64), b.ints([axis])])
    hit = b.emit("Equal", [places, b.constant(classes.astype(np.int64))])
    values = [b.constant(v.reshape(())) for v in (on, off)]
    b.bind(op.outputs[0], b.emit("Where", [hit, *values]))
