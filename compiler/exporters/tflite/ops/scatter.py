"""Scatters to places computed at run time: SCATTER_ND adds up what meets in one place, which is ONNX's reduction "add"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, shape_of
from compiler.exporters.tflite.ops.unary import need_type
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir


@lowers("ScatterND", since=11)
def scatter_nd(context: LoweringContext, node: ir.Node) -> None:
    """Without a reduction ONNX forbids two updates of one place: then the sum is the update, and a scatter of ones says where."""
    source, indices, updates = (value for value in node.inputs if value is not None)
    need_type(source, ("float32", "int32", "int64"))
    reduction = attr.text(node, "reduction", "none")
    if context.constant(indices) is not None or reduction not in ("none", "add"):
        raise Unsupported(f"reduction {reduction!r} with these indices is no sum", "Make the indices constant.")
    shape, order = shape_of(source), layout.identity(len(shape_of(source)))
    places = _places(context, indices, shape)
    data = context.read(source, order)
    added = _scattered(context, places, context.read(updates, layout.identity(len(shape_of(updates)))), data)
    result = context.produce(node.outputs[0], order)
    if reduction == "add":
        context.emit("ADD", [data, added], [result], "AddOptions")
        return
    ones = context.literal(np.ones(shape_of(updates), data.dtype), "ones")
    counted = _scattered(context, places, ones, data)
    touched = context.writer.tensor("touched", shape, np.dtype(np.bool_), None)
    context.emit("GREATER", [counted, context.literal(np.zeros((), data.dtype), "zero")], [touched])
    context.emit("SELECT_V2", [touched, added, data], [result])


def _scattered(context: LoweringContext, places: Tensor, updates: Tensor, like: Tensor) -> Tensor:
    result = context.temporary(like.shape, like)
    shape = context.literal(np.asarray(like.shape, np.int32), "shape")
    context.emit("SCATTER_ND", [places, updates, shape], [result], "ScatterNdOptions")
    return result


def _places(context: LoweringContext, indices: ir.Value, shape: tuple[int, ...]) -> Tensor:
    """int32, counted from the front; the kernel knows neither int64 nor negative places."""
    tensor = context.read(indices, layout.identity(len(shape_of(indices))))
    narrow = context.writer.tensor("places", tensor.shape, np.dtype(np.int32), None)
    context.emit("CAST", [tensor], [narrow], None, to=narrow.dtype)
    wrapped = context.temporary(tensor.shape, narrow)
    sizes = context.literal(np.asarray(shape[: tensor.shape[-1]], np.int32), "sizes")
    context.emit("FLOOR_MOD", [narrow, sizes], [wrapped])
    return wrapped
