"""Sliding windows: explicit paddings out of ONNX's pads, auto_pad and ceil_mode. Pure arithmetic on static shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.exporters.coreml.context import Unsupported, ints_attr, is_fixed, string_attr

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Window:
    """A window over each spatial axis. ``begin`` and ``end`` are the model's own padding, before any ceil_mode extra."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @property
    def extent(self) -> list[int]:
        """Elements spanned: (k - 1) * dilation + 1."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def end_for(self, sizes: Sequence[int], out: Sequence[int]) -> list[int]:
        """The end padding with which floor division yields exactly ``out``: (out - 1) * s + extent - in - begin."""
        rows = zip(sizes, out, self.strides, self.extent, self.begin, strict=True)
        return [max(0, (o - 1) * s + e - i - b) for i, o, s, e, b in rows]


def interleave(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """MIL's order: before and after of the first axis, then of the next."""
    return [p for pair in zip(begin, end, strict=True) for p in pair]


def window_of(node: ir.Node, kernel: Sequence[int], sizes: Sequence[int]) -> Window:
    """The window of a Conv or pooling node over spatial ``sizes``.

    Source: ONNX operators, Conv and MaxPool: SAME_UPPER and SAME_LOWER give ceil(size / stride) outputs and put the odd
    element at the end and at the beginning.
    """
    rank = len(kernel)
    strides, dilations = ints_attr(node, "strides", [1] * rank), ints_attr(node, "dilations", [1] * rank)
    auto_pad = string_attr(node, "auto_pad", "NOTSET")
    pads = ints_attr(node, "pads", [0] * 2 * rank)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        if not is_fixed(sizes):
            raise Unsupported(f"{auto_pad} pads by the size, which is flexible", "State the padding, or fix the sizes.")
        totals = [
            max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
            for size, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        begin = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in totals]
        pads = begin + [t - b for t, b in zip(totals, begin, strict=True)]
    elif auto_pad == "VALID":
        pads = [0] * 2 * rank
    if min(pads, default=0) < 0:
        raise Unsupported(f"its padding {pads} is negative", "Cut the input with Slice before this node.")
    return Window(list(kernel), strides, dilations, pads[:rank], pads[rank:])
