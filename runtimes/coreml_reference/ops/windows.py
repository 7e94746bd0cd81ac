"""What convolution and pooling share: padding rules and output sizes.

Source: coremltools MIL ops, iOS15 conv.py and pool.py documentation of ``pad_type``, ``pad`` and ``ceil_mode``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtimes.coreml_reference.types import check_size
from runtimes.session import Array

Pads = list[tuple[int, int]]


def resolve_pads(
    pad_type: str, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pad: Sequence[int]
) -> Pads:
    """(before, after) for each spatial dimension. ``kernel`` is the dilated extent.

    same: total = max((ceil(size / stride) - 1) * stride + kernel - size, 0), the odd element after (same_lower: before).

    Raises:
        ValueError: unknown ``pad_type``, or lists of different lengths.
    """
    rank = len(size)
    if not len(kernel) == len(strides) == rank or len(pad) != 2 * rank:
        raise ValueError(f"kernel {list(kernel)}, strides {list(strides)}, pad {list(pad)} do not fit rank {rank}")
    if any(s < 1 for s in strides) or any(k < 1 for k in kernel) or any(p < 0 for p in pad):
        raise ValueError(f"kernel {list(kernel)}, strides {list(strides)}, pad {list(pad)} must be positive")
    if pad_type == "valid":
        return [(0, 0)] * rank
    if pad_type == "custom":
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(rank)]
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r} is not known")
    pads: Pads = []
    for extent, k, s in zip(size, kernel, strides, strict=True):
        total = max((-(-extent // s) - 1) * s + k - extent, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if pad_type == "same" else (large, small))
    return pads


def pad_spatial(x: Array, pads: Pads, value: float = 0.0) -> Array:
    """Pad the spatial dimensions of [N, C, *spatial] with ``value``."""
    if not any(before or after for before, after in pads):
        return x
    check_size([*x.shape[:2], *(d + b + a for d, (b, a) in zip(x.shape[2:], pads, strict=True))], x.dtype.itemsize)
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def output_size(extent: int, pads: tuple[int, int], kernel: int, stride: int, *, ceil_mode: bool = False) -> int:
    """Number of window positions along one dimension; ``kernel`` is the dilated extent.

    Raises:
        ValueError: the window does not fit even once.
    """
    total = extent + sum(pads) - kernel
    count = total // stride + 1
    if ceil_mode:
        count = -(-total // stride) + 1
        # The last window must start inside the input or its leading padding (PyTorch's rule, as documented by MIL).
        if (count - 1) * stride >= extent + pads[0] and sum(pads) > 0:
            count -= 1
    if total < 0 or count < 1:
        raise ValueError(f"a window of {kernel} does not fit {extent} elements padded by {pads}")
    return count


def tap(x: Array, offsets: Sequence[int], strides: Sequence[int], counts: Sequence[int]) -> Array:
    """The elements that one kernel tap sees at every window position: a strided view of [N, C, *spatial]."""
    index = [slice(o, o + (n - 1) * s + 1, s) for o, s, n in zip(offsets, strides, counts, strict=True)]
    return x[(slice(None), slice(None), *index)]
