"""Where extrema lie, the largest elements, gathers along several axes, remainders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, dtype_of, shape_of
from compiler.exporters.tflite.ops.binary import FLOAT_OR_INT, aligned, common_order
from compiler.exporters.tflite.ops.unary import any_order, need_type
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

CODES = {"ArgMax": "ARG_MAX", "ArgMin": "ARG_MIN"}
INT64 = 4  # TensorType in the schema


@lowers(*CODES)
def arg_extremum(context: LoweringContext, node: ir.Node) -> None:
    """The kernel drops the axis; the first of equal extrema wins."""
    if attr.integer(node, "select_last_index", 0):
        raise Unsupported("it wants the last of equal extrema")
    source, output = attr.first(node), node.outputs[0]
    need_type(source, ("float32", "int32", "int8", "uint8"))
    rank = len(shape_of(source))
    axis = attr.axis(node, rank, 0)
    perm = any_order(context, source)
    x = context.read(source, perm)
    keep = bool(attr.integer(node, "keepdims", 1))
    where = perm.index(axis)
    dropped = tuple(size for i, size in enumerate(x.shape) if i != where)
    result = context.writer.tensor(str(output.name), dropped, np.dtype(np.int64), None)
    place = context.literal(np.asarray([where], np.int32), "axis")
    context.emit(CODES[node.op_type], [x, place], [result], f"{node.op_type}Options", outputType=INT64)
    if keep:
        context.bind(output, context.reshape(result, layout.permuted(shape_of(output), perm)), perm)
    else:
        context.bind(output, result, layout.without(perm, [axis]))


@lowers("TopK", since=11)
def top_k(context: LoweringContext, node: ir.Node) -> None:
    """The kernel takes the largest along the last axis, sorted; the smallest are the largest of the negated input."""
    source = attr.first(node)
    need_type(source, ("float32", "int32", "int64"))
    count = context.required_constant(attr.operand(node, 1), "count")
    rank = len(shape_of(source))
    axis = attr.axis(node, rank, -1)
    perm = layout.last(any_order(context, source), axis)
    x = context.read(source, perm)
    smallest = not attr.integer(node, "largest", 1)
    if smallest:
        if dtype_of(source) != np.float32:
            raise Unsupported("the smallest of integers have no kernel", "Cast to float32.")
        x = _negated(context, x)
    shape = (*x.shape[:-1], int(count.ravel()[0]))
    values, indices = context.temporary(shape, x), context.writer.tensor("indices", shape, np.dtype(np.int32), None)
    k = context.literal(np.asarray(int(count.ravel()[0]), np.int32), "k")
    context.emit("TOPK_V2", [x, k], [values, indices], "TopKV2Options")
    context.bind(node.outputs[0], _negated(context, values) if smallest else values, perm)
    if len(node.outputs) > 1 and node.outputs[1].name:
        wide = context.produce(node.outputs[1], perm)
        context.emit("CAST", [indices], [wide], None, to=wide.dtype)


def _negated(context: LoweringContext, tensor: Tensor) -> Tensor:
    result = context.temporary(tensor.shape, tensor)
    context.emit("NEG", [tensor], [result])
    return result


@lowers("GatherND", since=12)
def gather_nd(context: LoweringContext, node: ir.Node) -> None:
    source, indices, output = attr.first(node), node.inputs[1], node.outputs[0]
    assert indices is not None
    need_type(source, FLOAT_OR_INT)
    shape, where = shape_of(source), shape_of(indices)
    batch = attr.integer(node, "batch_dims", 0)
    constant = context.constant(indices)
    if batch and constant is None:
        raise Unsupported("it has batch dimensions and indices computed at run time")
    x = context.read(source, layout.identity(len(shape)))
    if constant is not None:
        limits = np.asarray(shape[batch : batch + where[-1]])
        absolute = np.where(constant < 0, constant + limits, constant)
        if batch:
            places = np.indices(where[:-1])[:batch]
            absolute = np.concatenate([np.moveaxis(places, 0, -1), absolute], axis=-1)
        positions = context.literal(absolute.astype(np.int32), "indices")
    else:
        positions = _wrapped(context, indices, shape[: where[-1]])
    result = context.produce(output, layout.identity(len(shape_of(output))))
    context.emit("GATHER_ND", [x, positions], [result], "GatherNdOptions")


def _wrapped(context: LoweringContext, indices: ir.Value, limits: tuple[int, ...]) -> Tensor:
    """Indices from the front; the kernel knows no negative ones."""
    tensor = context.read(indices, layout.identity(len(shape_of(indices))))
    result = context.temporary(tensor.shape, tensor)
    context.emit("FLOOR_MOD", [tensor, context.literal(np.asarray(limits, tensor.dtype), "sizes")], [result])
    return result


@lowers("Mod", since=10)
def mod(context: LoweringContext, node: ir.Node) -> None:
    """FLOOR_MOD has the divisor's sign, which is what ONNX asks for without ``fmod``."""
    if attr.integer(node, "fmod", 0):
        raise Unsupported("the remainder with the dividend's sign has no kernel")
    source, divisor, output = attr.first(node), node.inputs[1], node.outputs[0]
    assert divisor is not None
    need_type(source, FLOAT_OR_INT)
    perm = common_order(context, [source, divisor], len(shape_of(output)))
    tensors = [aligned(context, value, perm) for value in (source, divisor)]
    context.emit("FLOOR_MOD", tensors, [context.produce(output, perm)])


@lowers("Sign")
def sign(context: LoweringContext, node: ir.Node) -> None:
    source = attr.first(node)
    need_type(source, ("float32", "int32"))
    perm = any_order(context, source)
    context.emit("SIGN", [context.read(source, perm)], [context.produce(node.outputs[0], perm)])
