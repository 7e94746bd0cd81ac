"""NonMaxSuppression and NonZero, whose results are as large as the data says.

One NON_MAX_SUPPRESSION_V4 per picture and class gives as many indices as are asked for, filled up, and how many of them count.
Those rows are picked by WHERE, whose result LiteRT allocates while it runs, and GATHER_ND.

Source: ONNX's definition (opset 11), onnxruntime's cpu/object_detection/non_max_suppression.cc; LiteRT's
kernels/non_max_suppression.cc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, name_of, shape_of
from compiler.exporters.tflite.ops.binary import FLOAT_OR_INT
from compiler.exporters.tflite.ops.unary import need_type
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

INT32, INT64, TRUTH = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.bool_)
LEAST_NORMAL = np.finfo(np.float32).tiny  # a denormal number may be taken for 0, which every box overlaps by
# [x, y, width, height] of a centre as [y1, x1, y2, x2]: each sum is rounded once, as in two operators.
CORNERS = np.asarray([[0, 1, 0, -0.5], [1, 0, -0.5, 0], [0, 1, 0, 0.5], [1, 0, 0.5, 0]], np.float32)


@lowers("NonMaxSuppression", since=11)
def non_max_suppression(context: LoweringContext, node: ir.Node) -> None:
    boxes, scores, output = attr.first(node), node.inputs[1], node.outputs[0]
    assert scores is not None, "NonMaxSuppression has two inputs at least"
    if context.free_batch:
        raise Unsupported("every picture of the batch has operators of its own", "Build with a fixed --batch.")
    batch, classes, count = shape_of(scores)
    most = min(int(_number(context, node, 2, 0, "largest number of boxes")), count)
    if most < 1:
        raise Unsupported("it selects no boxes", "Give max_output_boxes_per_class.")
    corners = context.reshape(context.read(boxes, layout.identity(3)), (batch * count, 4))
    if attr.integer(node, "center_point_box", 0):
        corners = _corners(context, corners)
    corners = context.reshape(corners, (batch, count, 4))
    given = context.read(scores, layout.identity(3))
    overlap = _number(context, node, 3, 0, "overlap")
    if not 0 <= overlap < 1:
        raise Unsupported(f"its overlap is {overlap}, and the kernel takes less than 1", "Leave the operator out.")
    least = _number(context, node, 4, float(np.finfo(np.float32).min), "least score")
    limits = [
        context.literal(np.asarray(most, np.int32), "most"),
        # The kernel drops a box whose overlap is the bound itself, ONNX keeps it.
        context.literal(np.maximum(np.nextafter(np.float32(overlap), np.float32(1)), LEAST_NORMAL), "overlap"),
        context.literal(np.asarray(least, np.float32), "least"),
    ]
    rows, counted = [], []
    for picture in range(batch):
        own = _row(context, corners, (picture, 0, 0), (1, count, 4), (count, 4))
        for one in range(classes):
            values = _row(context, given, (picture, one, 0), (1, 1, count), (count,))
            found = context.writer.tensor(f"{node.name}/found", (most,), INT32)
            valid = context.writer.tensor(f"{node.name}/valid", (), INT32)
            context.emit("NON_MAX_SUPPRESSION_V4", [own, values, *limits], [found, valid], "NonMaxSuppressionV4Options")
            rows.append(_labelled(context, found, picture, one))
            counted.append(_counted(context, valid, most))
    _picked(context, output, _joined(context, rows), _joined(context, counted))


@lowers("NonZero", since=13)
def non_zero(context: LoweringContext, node: ir.Node) -> None:
    """WHERE lists places row by row, ONNX axis by axis."""
    source, output = attr.first(node), node.outputs[0]
    need_type(source, (*FLOAT_OR_INT, "bool"))
    shape = shape_of(source)
    if not shape:
        raise Unsupported("it reads a single number", "Compare the number with 0 instead.")
    x = context.read(source, layout.identity(len(shape)))
    if x.dtype != TRUTH:
        flags = context.writer.tensor(f"{node.name}/flags", shape, TRUTH)
        context.emit("NOT_EQUAL", [x, context.literal(np.zeros(1, x.dtype), "zero")], [flags], "NotEqualOptions")
        x = flags
    most = int(np.prod(shape))
    places = context.writer.tensor(f"{node.name}/places", (most, len(shape)), INT64)
    context.emit("WHERE", [x], [places])
    result = context.writer.tensor(name_of(output), (len(shape), most), INT64)
    order = context.literal(np.asarray([1, 0], np.int32), "order")
    context.emit("TRANSPOSE", [places, order], [result], to=INT64)
    context.writer.free(places.index, places.shape, (-1, len(shape)))
    context.writer.free(result.index, result.shape, (len(shape), -1))
    context.bind_at_most(output, result)


def _number(context: LoweringContext, node: ir.Node, place: int, default: float, what: str) -> float:
    value = attr.operand(node, place)
    return default if value is None else float(context.required_constant(value, what).reshape(()))


def _corners(context: LoweringContext, centres: Tensor) -> Tensor:
    result = context.temporary(centres.shape, centres)
    bias = context.literal(np.zeros(4, np.float32), "bias")
    operands = [centres, context.literal(CORNERS, "corners"), bias]
    context.emit("FULLY_CONNECTED", operands, [result], "FullyConnectedOptions")
    return result


def _row(
    context: LoweringContext, tensor: Tensor, begin: tuple[int, ...], size: tuple[int, ...], shape: tuple[int, ...]
) -> Tensor:
    if tensor.shape == size:
        return context.reshape(tensor, shape)
    part = context.temporary(size, tensor)
    bounds = [context.literal(np.asarray(numbers, np.int32), "bounds") for numbers in (begin, size)]
    context.emit("SLICE", [tensor, *bounds], [part], "SliceOptions")
    return context.reshape(part, shape)


def _labelled(context: LoweringContext, found: Tensor, picture: int, one: int) -> Tensor:
    """[boxes, 3]: picture, class, box."""
    most = found.shape[0]
    labels = context.literal(np.tile(np.asarray([picture, one], np.int32), (most, 1)), "labels")
    result = context.writer.tensor(f"{context.node}/rows", (most, 3), INT32)
    operands = [labels, context.reshape(found, (most, 1))]
    context.emit("CONCATENATION", operands, [result], "ConcatenationOptions", axis=1)
    return result


def _counted(context: LoweringContext, valid: Tensor, most: int) -> Tensor:
    """Which of the indices count."""
    result = context.writer.tensor(f"{context.node}/counted", (most,), TRUTH)
    numbers = context.literal(np.arange(most, dtype=np.int32), "numbers")
    context.emit("LESS", [numbers, context.reshape(valid, (1,))], [result], "LessOptions")
    return result


def _joined(context: LoweringContext, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    result = context.temporary(shape, parts[0])
    context.emit("CONCATENATION", parts, [result], "ConcatenationOptions", axis=0)
    return result


def _picked(context: LoweringContext, output: ir.Value, rows: Tensor, counted: Tensor) -> None:
    """The rows that count, in a tensor with as many: at most those of ``rows``."""
    most = rows.shape[0]
    where = context.writer.tensor(f"{context.node}/where", (most, 1), INT64)
    context.emit("WHERE", [counted], [where])
    narrow = context.writer.tensor(f"{context.node}/picked", (most, 3), INT32)
    context.emit("GATHER_ND", [rows, where], [narrow], "GatherNdOptions")
    result = context.writer.tensor(name_of(output), (most, 3), INT64)
    context.emit("CAST", [narrow], [result], None, to=INT64)
    for tensor in (where, narrow, result):
        context.writer.free(tensor.index, tensor.shape, (-1, *tensor.shape[1:]))
    context.bind_at_most(output, result)
