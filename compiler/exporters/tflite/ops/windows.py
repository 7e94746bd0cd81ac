"""Padding of sliding windows: from ONNX's attributes to SAME, VALID or an operator before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite.context import LoweringContext, Unsupported
from compiler.exporters.tflite.tensors import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

SAME, VALID = 0, 1  # Padding in the schema


@dataclass(frozen=True, slots=True)
class Window:
    """A two-dimensional window; a one-dimensional one has height 1. ``pads``: ((top, bottom), (left, right))."""

    sizes: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    outputs: tuple[int, int]

    @property
    def unpadded(self) -> bool:
        return self.pads == ((0, 0), (0, 0))

    @property
    def is_same(self) -> bool:
        """Whether TFLite's SAME computes exactly these pads: out = ceil(in / stride), the odd one at the end."""
        return all(self._same(axis) for axis in (0, 1))

    def _same(self, axis: int) -> bool:
        size, stride = self.sizes[axis], self.strides[axis]
        out = math.ceil(size / stride)
        extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        total = max((out - 1) * stride + extent - size, 0)
        return self.outputs[axis] == out and self.pads[axis] == (total // 2, total - total // 2)


def window(node: ir.Node, sizes: Sequence[int], kernel: Sequence[int], outputs: Sequence[int]) -> Window:
    """The window of a convolution or pooling over spatial ``sizes`` that yields ``outputs``.

    ``ceil_mode`` shows as extra padding at the end, derived from ``outputs``.
    """
    rank = len(sizes)
    strides = attr.integers(node, "strides") or [1] * rank
    dilations = attr.integers(node, "dilations") or [1] * rank
    pads = _pads(node, sizes, kernel, strides, dilations)
    if min(min(pair) for pair in pads) < 0:
        raise Unsupported("its pads are negative", "Slice the input instead.")
    lead = [1] * (2 - rank)
    padded = []
    for axis in range(rank):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        reach = (outputs[axis] - 1) * strides[axis] + extent
        padded.append((pads[axis][0], max(pads[axis][1], reach - sizes[axis] - pads[axis][0])))
    return Window(
        _pair(lead, sizes),
        _pair(lead, kernel),
        _pair(lead, strides),
        _pair(lead, dilations),
        ((0, 0), padded[0]) if rank == 1 else (padded[0], padded[1]),
        _pair(lead, outputs),
    )


def _pair(lead: list[int], values: Sequence[int]) -> tuple[int, int]:
    first, second = [*lead, *(int(v) for v in values)]
    return first, second


def _pads(
    node: ir.Node, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    rank, mode = len(sizes), attr.text(node, "auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = attr.integers(node, "pads") or [0] * (2 * rank)
        return [(pads[axis], pads[axis + rank]) for axis in range(rank)]
    if mode == "VALID":
        return [(0, 0)] * rank
    result = []
    for axis in range(rank):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        total = max((math.ceil(sizes[axis] / strides[axis]) - 1) * strides[axis] + extent - sizes[axis], 0)
        small, large = total // 2, total - total // 2
        result.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return result


def pad_spatial(
    context: LoweringContext, tensor: Tensor, pads: Sequence[tuple[int, int]], value: float | None = None
) -> Tensor:
    """Pad height and width of an NHWC tensor: with zero (int8: its zero point), or with ``value`` as stored."""
    shape = (
        tensor.shape[0],
        tensor.shape[1] + sum(pads[0]),
        tensor.shape[2] + sum(pads[1]),
        tensor.shape[3],
    )
    padded = context.temporary(shape, tensor)
    amounts = context.literal(np.asarray([(0, 0), *pads, (0, 0)], np.int32), "pads")
    if value is None:
        context.emit("PAD", [tensor, amounts], [padded], "PadOptions")
    else:
        fill = context.writer.constant("fill", np.full((1,), value, tensor.dtype), tensor.quant)
        context.emit("PADV2", [tensor, amounts, fill], [padded], "PadV2Options")
    return padded


def to_nhwc(context: LoweringContext, tensor: Tensor) -> Tensor:
    """[N, W, C] as [N, 1, W, C]."""
    if len(tensor.shape) == 4:
        return tensor
    batch, width, channels = tensor.shape
    return context.reshape(tensor, (batch, 1, width, channels))
