"""Operators that move or repeat elements. Target shapes are the file's own: they are fixed when it is written."""

from __future__ import annotations

import numpy as np

from compiler.importers.tflite.builder import CHANNELS_FIRST, Builder, Unsupported, identity
from compiler.importers.tflite.ops.elementwise import common_perm, operand
from compiler.importers.tflite.reader import Operator, enum_names
from compiler.importers.tflite.table import reads


@reads("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "BITCAST")
def reshape(b: Builder, op: Operator) -> None:
    if op.type == "BITCAST":
        raise Unsupported("ONNX has no reinterpretation of bits")
    b.bind(op.outputs[0], b.emit("Reshape", [b.read(op.inputs[0]), b.ints(b.shape(op.outputs[0]))]))


@reads("TRANSPOSE")
def transpose(b: Builder, op: Operator) -> None:
    order = [int(a) for a in b.required(op, 1, "order").reshape(-1)]
    held = b.perm(op.inputs[0])
    value = b.read(op.inputs[0], held)
    # The stored axes stay where they are; only their meaning changes.
    b.bind(op.outputs[0], value, tuple(order.index(axis) for axis in held))


@reads("CONCATENATION")
def concatenation(b: Builder, op: Operator) -> None:
    perm = common_perm(b, op)
    axis = int(op.option("axis")) % len(perm)
    b.finish(op, b.emit("Concat", [operand(b, i, perm) for i in op.inputs], axis=perm.index(axis)), perm)


@reads("PACK")
def pack(b: Builder, op: Operator) -> None:
    axis = int(op.option("axis")) % len(b.shape(op.outputs[0]))
    parts = [b.emit("Unsqueeze", [b.read(i), b.ints([axis])]) for i in op.inputs]
    b.bind(op.outputs[0], b.emit("Concat", parts, axis=axis))


@reads("UNPACK")
def unpack(b: Builder, op: Operator) -> None:
    axis = int(op.option("axis")) % len(b.shape(op.inputs[0]))
    parts = b.emit_many("Split", [b.read(op.inputs[0])], len(op.outputs), axis=axis, num_outputs=len(op.outputs))
    for index, part in zip(op.outputs, parts, strict=True):
        b.bind(index, b.emit("Squeeze", [part, b.ints([axis])]))


@reads("SPLIT", "SPLIT_V")
def split(b: Builder, op: Operator) -> None:
    """SPLIT takes (axis, data); SPLIT_V (data, sizes, axis). The sizes are those of the outputs."""
    data, place = (op.inputs[1], 0) if op.type == "SPLIT" else (op.inputs[0], 2)
    perm = b.perm(data)
    axis = int(b.required(op, place, "axis").reshape(-1)[0]) % len(perm)
    sizes = [b.shape(i)[axis] for i in op.outputs]
    parts = b.emit_many("Split", [b.read(data, perm), b.ints(sizes)], len(sizes), axis=perm.index(axis))
    for index, part in zip(op.outputs, parts, strict=True):
        b.bind(index, part, perm)


@reads("PAD", "PADV2", "MIRROR_PAD")
def pad(b: Builder, op: Operator) -> None:
    """Paddings [rank, 2]. SYMMETRIC repeats the edge itself, which ONNX's modes do not."""
    amounts, perm = b.required(op, 1, "padding"), b.perm(op.inputs[0])
    ordered = [amounts[axis] for axis in perm]
    inputs = [b.read(op.inputs[0], perm), b.ints([int(v) for side in (0, 1) for v in (a[side] for a in ordered)])]
    mode = "constant"
    if op.type == "MIRROR_PAD":
        if enum_names("MirrorPadMode")[op.option("mode")] != "REFLECT" and int(amounts.max(initial=0)) > 0:
            b.bind(op.outputs[0], _symmetric(b, op, amounts))
            return
        mode = "reflect"
    elif op.type == "PADV2":
        inputs.append(b.constant(b.required(op, 2, "value").reshape(())))
    b.bind(op.outputs[0], b.emit("Pad", inputs, mode=mode), perm)


def _symmetric(b: Builder, op: Operator, amounts: np.ndarray) -> str:
    """Gathering along every padded axis: positions before 0 and after the end are mirrored with the edge counted twice."""
    value = b.read(op.inputs[0])
    for axis, (before, after) in enumerate(amounts):
        if before or after:
            size = b.shape(op.inputs[0])[axis]
            places = np.pad(np.arange(size), (int(before), int(after)), mode="symmetric")
            value = b.emit("Gather", [value, b.ints(places.tolist())], axis=axis)
    return value


@reads("TILE")
def tile(b: Builder, op: Operator) -> None:
    repeats = b.required(op, 1, "repeats").reshape(-1)
    b.bind(op.outputs[0], b.emit("Tile", [b.read(op.inputs[0]), b.ints(repeats.tolist())]))


@reads("BROADCAST_TO")
def broadcast_to(b: Builder, op: Operator) -> None:
    b.bind(op.outputs[0], b.emit("Expand", [b.read(op.inputs[0]), b.ints(b.shape(op.outputs[0]))]))


@reads("FILL")
def fill(b: Builder, op: Operator) -> None:
    b.bind(op.outputs[0], b.emit("Expand", [b.read(op.inputs[1]), b.ints(b.shape(op.outputs[0]))]))


@reads("SHAPE", "RANK")
def shape_of(b: Builder, op: Operator) -> None:
    shape, dtype = b.shape(op.inputs[0]), np.dtype(b.tensor(op.outputs[0]).dtype)
    value = np.array(shape if op.type == "SHAPE" else len(shape), dtype)
    b.bind(op.outputs[0], b.constant(value))


@reads("RANGE")
def range_(b: Builder, op: Operator) -> None:
    b.bind(op.outputs[0], b.emit("Range", [b.read(i) for i in op.inputs]))


@reads("SPACE_TO_DEPTH", "DEPTH_TO_SPACE")
def blocks(b: Builder, op: Operator) -> None:
    """Both order a block's cells before its channels: DCR in ONNX's terms."""
    size = int(op.option("blockSize", 1))
    x = b.read(op.inputs[0], CHANNELS_FIRST)
    if op.type == "DEPTH_TO_SPACE":
        result = b.emit("DepthToSpace", [x], blocksize=size, mode="DCR")
    else:
        result = b.emit("SpaceToDepth", [x], blocksize=size)
    b.bind(op.outputs[0], result, CHANNELS_FIRST)


@reads("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND")
def batches(b: Builder, op: Operator) -> None:
    """Blocks of the spatial axes move to the batch, and back. Source: TensorFlow's documentation of SpaceToBatchND."""
    block = [int(v) for v in b.required(op, 1, "block shape").reshape(-1)]
    edges = b.required(op, 2, "padding").reshape(-1, 2)
    shape = list(b.shape(op.inputs[0]))
    value, count = b.read(op.inputs[0]), len(block)
    rest = shape[1 + count :]
    if op.type == "SPACE_TO_BATCH_ND":
        before = [0, *edges[:, 0].tolist(), *[0] * len(rest)]
        after = [0, *edges[:, 1].tolist(), *[0] * len(rest)]
        value = b.emit("Pad", [value, b.ints([*before, *after])])
        spatial = [shape[1 + i] + int(edges[i].sum()) for i in range(count)]
        cells = [part for size, k in zip(spatial, block, strict=True) for part in (size // k, k)]
        value = b.emit("Reshape", [value, b.ints([shape[0], *cells, *rest])])
        order = [*(2 + 2 * i for i in range(count)), 0, *(1 + 2 * i for i in range(count))]
        order += range(1 + 2 * count, 1 + 2 * count + len(rest))
        value = b.emit("Transpose", [value], perm=order)
        b.bind(op.outputs[0], b.emit("Reshape", [value, b.ints(b.shape(op.outputs[0]))]))
        return
    batch = shape[0] // int(np.prod(block))
    value = b.emit("Reshape", [value, b.ints([*block, batch, *shape[1:]])])
    order = [count, *(axis for i in range(count) for axis in (count + 1 + i, i))]
    order += range(2 * count + 1, 2 * count + 1 + len(rest))
    value = b.emit("Transpose", [value], perm=order)
    spatial = [size * k for size, k in zip(shape[1 : 1 + count], block, strict=True)]
    value = b.emit("Reshape", [value, b.ints([batch, *spatial, *rest])])
    ends = [size - int(crop) for size, crop in zip(spatial, edges[:, 1], strict=True)]
    axes = list(identity(count + 1))[1:]
    starts = b.ints(edges[:, 0].tolist())
    b.bind(op.outputs[0], b.emit("Slice", [value, starts, b.ints(ends), b.ints(axes)]))


@reads("REVERSE_V2")
def reverse(b: Builder, op: Operator) -> None:
    shape = b.shape(op.inputs[0])
    axes = [int(a) % len(shape) for a in b.required(op, 1, "axes").reshape(-1)]
    value = b.read(op.inputs[0])
    for axis in axes:
        value = b.emit("Gather", [value, b.ints(range(shape[axis] - 1, -1, -1))], axis=axis)
    b.bind(op.outputs[0], value)
