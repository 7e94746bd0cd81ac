"""Poolings. Averages leave the padding out of the count, as LiteRT's kernels do (reference_ops: pooling.h)."""

from __future__ import annotations

from compiler.importers.tflite.builder import CHANNELS_FIRST, Builder
from compiler.importers.tflite.ops.windows import pads
from compiler.importers.tflite.reader import Operator
from compiler.importers.tflite.table import reads


@reads("AVERAGE_POOL_2D", "MAX_POOL_2D")
def pool_2d(b: Builder, op: Operator) -> None:
    kernel = [op.option("filterHeight", 1), op.option("filterWidth", 1)]
    strides = [op.option("strideH", 1), op.option("strideW", 1)]
    result = b.emit(
        "MaxPool" if op.type == "MAX_POOL_2D" else "AveragePool",
        [b.read(op.inputs[0], CHANNELS_FIRST)],
        kernel_shape=kernel,
        strides=strides,
        pads=pads(op, b.shape(op.inputs[0])[1:3], kernel, strides, (1, 1)),
    )
    b.finish(op, result, CHANNELS_FIRST)


@reads("L2_POOL_2D")
def l2_pool(b: Builder, op: Operator) -> None:
    """The root of the mean square, over the cells that are not padding."""
    kernel = [op.option("filterHeight", 1), op.option("filterWidth", 1)]
    strides = [op.option("strideH", 1), op.option("strideW", 1)]
    x = b.read(op.inputs[0], CHANNELS_FIRST)
    mean = b.emit(
        "AveragePool",
        [b.emit("Mul", [x, x])],
        kernel_shape=kernel,
        strides=strides,
        pads=pads(op, b.shape(op.inputs[0])[1:3], kernel, strides, (1, 1)),
    )
    b.finish(op, b.emit("Sqrt", [mean]), CHANNELS_FIRST)
