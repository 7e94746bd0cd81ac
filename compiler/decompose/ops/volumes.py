"""Convolutions over three axes as sums of convolutions over two, one per tap along the depth."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("Conv")
def conv(b: Builder) -> None:
    """The depth counts as part of the batch; tap k reads the slices k dilations further on."""
    weight = b.operand(1)
    assert weight is not None
    if len(b.x.shape) != 5:
        raise Undecomposable("the runtime's own operator is needed")
    (strides, dilations), kernel = _steps(b), weight.shape[2:]
    pads = _same_or_given(b, kernel, strides, dilations)
    depth, out = b.x.shape[2], b.y.shape
    reach = (out[2] - 1) * strides[0] + (kernel[0] - 1) * dilations[0] + 1
    source = _padded(b, b.x.name, 5, 2, pads[0], max(0, reach - pads[0] - depth))
    total: str | None = None
    for k in range(kernel[0]):
        start = k * dilations[0]
        part = b.take(source, 2, start, start + (out[2] - 1) * strides[0] + 1, strides[0])
        part = _flat(b, part, (b.x.shape[0], b.x.shape[1], out[2], *b.x.shape[3:]))
        bias = [b.node.input[2]] if b.operand(2) is not None and k == 0 else []
        attributes = _plane(b, kernel, strides, dilations, pads)
        result = b.op("Conv", part, _slice(b, weight.name, weight.shape, k), *bias, **attributes)
        total = result if total is None else b.op("Add", total, result)
    assert total is not None
    b.output(b.transpose(b.reshape(total, [out[0], out[2], out[1], *out[3:]]), [0, 2, 1, 3, 4]))


def transposed(b: Builder) -> None:
    """Each tap's planes are set apart by the stride, moved by the tap's place and added; what the pads name is cut off."""
    weight = b.operand(1)
    assert weight is not None
    (strides, dilations), kernel, out = _steps(b), weight.shape[2:], b.y.shape
    more = b.attribute("output_padding", None) or [0] * 3
    full = [(b.x.shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(3)]
    pads = transposed_pads(b, full, more)
    planes = _flat(b, b.x.name, b.x.shape)
    batch, depth, area = b.x.shape[0], b.x.shape[2], out[1] * out[3] * out[4]
    attributes = _plane(b, kernel, strides, dilations, pads)
    attributes["output_padding"] = list(more[1:])
    total: str | None = None
    for k in range(kernel[0]):
        result = b.op("ConvTranspose", planes, _slice(b, weight.name, weight.shape, k), **attributes)
        spread = _spread(b, b.reshape(result, [batch, depth, area]), (batch, depth, area), strides[0])
        before = k * dilations[0]
        after = max(full[0], pads[0] + out[2]) - before - ((depth - 1) * strides[0] + 1)
        moved = _padded(b, spread, 3, 1, before, after)
        total = moved if total is None else b.op("Add", total, moved)
    assert total is not None
    cut = b.take(total, 1, pads[0], pads[0] + out[2])
    result = b.transpose(b.reshape(cut, [batch, out[2], out[1], out[3], out[4]]), [0, 2, 1, 3, 4])
    if b.operand(2) is not None:
        result = b.op("Add", result, b.reshape(b.node.input[2], [1, -1, 1, 1, 1]))
    b.output(result)


def transposed_pads(b: Builder, full: list[int], more: list[int]) -> list[int]:
    """Begins, then ends. Source: ONNX's ConvTranspose, the equations for total_padding with output_shape and SAME_*."""
    spatial, mode = len(full), b.attribute("auto_pad", "NOTSET")
    if b.attribute("output_shape", None) is None and mode in ("NOTSET", "VALID"):
        return list(b.attribute("pads", None) or [0] * 2 * spatial)
    totals = [max(0, full[i] + more[i] - b.y.shape[2 + i]) for i in range(spatial)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return [*small, *large] if mode == "SAME_UPPER" else [*large, *small]


def _steps(b: Builder) -> tuple[list[int], list[int]]:
    return b.attribute("strides", None) or [1] * 3, b.attribute("dilations", None) or [1] * 3


def _same_or_given(b: Builder, kernel: tuple[int, ...], strides: list[int], dilations: list[int]) -> list[int]:
    mode = b.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(b.attribute("pads", None) or [0] * 6)
    if mode == "VALID":
        return [0] * 6
    sizes = zip(b.x.shape[2:], b.y.shape[2:], kernel, strides, dilations, strict=True)
    totals = [max(0, (out - 1) * s + (k - 1) * d + 1 - size) for size, out, k, s, d in sizes]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return [*small, *large] if mode == "SAME_UPPER" else [*large, *small]


def _plane(
    b: Builder, kernel: tuple[int, ...], strides: list[int], dilations: list[int], pads: list[int]
) -> dict[str, Any]:
    """Attributes of the convolution over rows and columns."""
    return {
        "kernel_shape": list(kernel[1:]),
        "strides": list(strides[1:]),
        "dilations": list(dilations[1:]),
        "pads": [pads[1], pads[2], pads[4], pads[5]],
        "group": b.attribute("group", 1),
    }


def _flat(b: Builder, name: str, shape: tuple[int, ...]) -> str:
    """[N, C, D, H, W] as [N D, C, H, W]."""
    n, c, d, h, w = shape
    return b.reshape(b.transpose(name, [0, 2, 1, 3, 4]), [n * d, c, h, w])


def _slice(b: Builder, weight: str, shape: tuple[int, ...], k: int) -> str:
    return b.reshape(b.take(weight, 2, k, k + 1), [shape[0], shape[1], *shape[3:]])


def _spread(b: Builder, name: str, shape: tuple[int, int, int], stride: int) -> str:
    """Zeros between the planes."""
    batch, depth, area = shape
    if stride == 1 or depth == 1:
        return name
    zeros = np.zeros((batch, depth, stride - 1, area), np.float32)
    wide = b.op("Concat", b.reshape(name, [batch, depth, 1, area]), zeros, axis=2)
    return b.take(b.reshape(wide, [batch, depth * stride, area]), 1, 0, (depth - 1) * stride + 1)


def _padded(b: Builder, name: str, rank: int, axis: int, before: int, after: int) -> str:
    if not before and not after:
        return name
    pads = np.zeros(2 * rank, np.int64)
    pads[axis], pads[axis + rank] = before, after
    return b.op("Pad", name, pads, b.constant(0.0, "float32"))
