"""Unfolds a convolution's input into rows (im2col) at chosen output positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from compiler.pruning.flow import attribute

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Window:
    """Geometry of a convolution over its spatial axes, as ONNX Conv names it; ``pads`` as (begin, end) per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def window_of(node: ir.Node, kernel: Sequence[int], spatial: Sequence[int]) -> Window:
    """Geometry of a Conv with this kernel on an input of this spatial size; auto_pad is resolved as ONNX defines it."""
    rank = len(kernel)
    strides = tuple(attribute(node, "strides", (1,) * rank))
    dilations = tuple(attribute(node, "dilations", (1,) * rank))
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = tuple(
            _same(size, k, s, d, auto == "SAME_UPPER")
            for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True)
        )
    else:
        flat = tuple(attribute(node, "pads", (0,) * 2 * rank)) if auto == "NOTSET" else (0,) * 2 * rank
        pads = tuple((int(flat[i]), int(flat[i + rank])) for i in range(rank))
    return Window(tuple(kernel), strides, dilations, pads)


def _same(size: int, kernel: int, stride: int, dilation: int, upper: bool) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def unfold(array: Tensor, window: Window, positions: NDArray[np.int64]) -> Tensor:
    """Rows [batch * positions, channels * prod(kernel)] of ``array`` [batch, channels, *spatial].

    ``positions`` are flat indices into the output's spatial grid; columns are ordered as weight[o].ravel().
    """
    rank = len(window.kernel)
    axes = tuple(range(2, 2 + rank))
    padded = np.pad(array, [(0, 0), (0, 0), *window.pads])
    reach = tuple((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    # numpy's stub knows a single axis only; the function takes as many as there are window sizes.
    views: Any = sliding_window_view(padded, reach, axis=axes)  # type: ignore[call-overload]
    steps = [slice(None, None, s) for s in window.strides] + [slice(None, None, d) for d in window.dilations]
    views = views[(slice(None), slice(None), *steps)]
    grid = np.unravel_index(positions, views.shape[2 : 2 + rank])
    picked: Tensor = views[(slice(None), slice(None), *grid)]  # [batch, channels, positions, *kernel]
    rows = np.moveaxis(picked, 2, 1)
    return rows.reshape(array.shape[0] * len(positions), array.shape[1] * prod(window.kernel))
