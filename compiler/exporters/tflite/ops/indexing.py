"""Slice and Gather."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, shape_of
from compiler.exporters.tflite.ops.shape import stored
from compiler.exporters.tflite.ops.unary import any_order
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir


@lowers("Slice", since=10)
def slice_(context: LoweringContext, node: ir.Node) -> None:
    source, output = attr.first(node), node.outputs[0]
    shape, perm = shape_of(source), any_order(context, source)
    begins, ends, steps = [0] * len(shape), list(shape), [1] * len(shape)
    masks = 0
    for axis, bounds in _bounds(context, node, shape).items():
        begins[axis], ends[axis], steps[axis] = bounds.indices(shape[axis])
        if ends[axis] < 0:  # past the front: only a mask can say so
            ends[axis], masks = 0, masks | 1 << perm.index(axis)
    if context.free_batch:  # an end that is the size itself would hold the batch size
        for axis, size in enumerate(shape):
            if steps[axis] > 0 and ends[axis] == size:
                ends[axis], masks = 0, masks | 1 << perm.index(axis)
    tensor = stored(context, source, perm)
    arguments = [
        context.literal(np.asarray([values[axis] for axis in perm], np.int32), "slice")
        for values in (begins, ends, steps)
    ]
    result = context.produce(output, perm, tensor.quant)
    context.emit("STRIDED_SLICE", [tensor, *arguments], [result], "StridedSliceOptions", endMask=masks)


def _bounds(context: LoweringContext, node: ir.Node, shape: tuple[int, ...]) -> dict[int, slice]:
    """Axis -> slice, by ONNX's clamping rules, which are Python's."""
    starts, ends = (
        context.required_constant(attr.operand(node, i), what).ravel() for i, what in ((1, "starts"), (2, "ends"))
    )
    axes_value, steps_value = attr.operand(node, 3), attr.operand(node, 4)
    axes = range(len(starts)) if axes_value is None else context.required_constant(axes_value, "axes").ravel()
    steps = [1] * len(starts) if steps_value is None else context.required_constant(steps_value, "steps").ravel()
    return {
        int(axis) % len(shape): slice(int(start), int(end), int(step))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


@lowers("Gather")
def gather(context: LoweringContext, node: ir.Node) -> None:
    source, indices, output = attr.first(node), node.inputs[1], node.outputs[0]
    assert indices is not None
    rank = len(shape_of(source))
    axis = attr.axis(node, rank, 0)
    index_rank = len(shape_of(indices))
    perm = any_order(context, source) if index_rank == 1 else layout.identity(rank)
    tensor = stored(context, source, perm)
    positions = _positions(context, indices, shape_of(source)[axis])
    out_perm = perm if index_rank == 1 else layout.identity(len(shape_of(output)))
    result = context.produce(output, out_perm, tensor.quant)
    context.emit("GATHER", [tensor, positions], [result], "GatherOptions", axis=perm.index(axis))


def _positions(context: LoweringContext, indices: ir.Value, size: int) -> Tensor:
    """Indices from the front; the kernel knows no negative ones."""
    constant = context.constant(indices)
    if constant is not None:
        return context.literal(np.where(constant < 0, constant + size, constant).astype(np.int32), "indices")
    tensor = context.read(indices, layout.identity(len(shape_of(indices))))
    wrapped = context.temporary(tensor.shape, tensor)
    # Of the index's own rank: beside a [1], LiteRT makes a scalar a [1] too, and the gather one axis more.
    modulus = context.literal(np.full((1,) * len(tensor.shape), size, tensor.dtype), "size")
    context.emit("FLOOR_MOD", [tensor, modulus], [wrapped])
    return wrapped
