"""Padding of sliding windows. Source: LiteRT's kernels/padding.h, ComputePaddingWithOffset: the odd cell goes to the end."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.importers.tflite.reader import Operator, enum_names


def pads(
    operator: Operator, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """ONNX ``pads`` (all begins, then all ends) for the operator's SAME or VALID over ``sizes``."""
    if enum_names("Padding")[operator.option("padding")] == "VALID":
        return [0] * (2 * len(sizes))
    totals = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (k - 1) * dilation + 1
        totals.append(max((-(-size // stride) - 1) * stride + reach - size, 0))
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]
