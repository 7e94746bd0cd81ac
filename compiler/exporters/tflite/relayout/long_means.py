"""int8 means and sums of many neighbours, which XNNPACK gets wrong, written so that its other kernel computes them.

Measured on ai-edge-litert 2.3.0 (x86): with zero point -128, MEAN of int8 over the innermost axis is 127 whatever the input from
somewhere between 8,320 and 9,000 elements on. With one more axis of size 1 behind it, right at 262,144 elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from compiler.exporters.tflite.tensors import Tensor
from compiler.exporters.tflite.writer import GraphWriter

LONGEST = 8192


def rows(code: str, inputs: Sequence[Tensor | None]) -> tuple[int, int] | None:
    """(rows, elements per row) of a reduction along the innermost axes that is too long for the kernel; None for others."""
    if code not in ("MEAN", "SUM") or len(inputs) < 2:
        return None
    source, axes = inputs[0], inputs[1]
    if source is None or axes is None or axes.data is None or source.dtype != np.int8:
        return None
    gone = {int(axis) % len(source.shape) for axis in axes.data.reshape(-1)}
    large = [axis for axis, size in enumerate(source.shape) if size != 1]
    reduced = [axis for axis in large if axis in gone]
    innermost = bool(reduced) and large[-len(reduced) :] == reduced
    length = prod(source.shape[axis] for axis in reduced)
    return (prod(source.shape) // length, length) if innermost and length > LONGEST else None


def reduce_rows(writer: GraphWriter, code: str, source: Tensor, result: Tensor, shape: tuple[int, int]) -> None:
    """``result`` from ``source`` seen as [rows, elements, 1]."""
    view = writer.tensor(f"{writer.name(source)}/rows", (*shape, 1), source.dtype, source.quant)
    short = writer.tensor(f"{writer.name(result)}/rows", (shape[0], 1), result.dtype, result.quant)
    writer.operator("RESHAPE", [source, _numbers(writer, view.shape)], [view])
    writer.operator(code, [view, _numbers(writer, (1,))], [short], "ReducerOptions", keepDims=False)
    writer.operator("RESHAPE", [short, _numbers(writer, result.shape)], [result])


def _numbers(writer: GraphWriter, values: Sequence[int]) -> Tensor:
    return writer.constant("numbers", np.asarray(values, np.int32))
