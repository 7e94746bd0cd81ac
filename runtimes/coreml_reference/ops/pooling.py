"""max_pool, avg_pool and l2_pool. Source: coremltools MIL ops, iOS15 pool.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtimes.coreml_reference.ops.windows import Pads, output_size, pad_spatial, resolve_pads, tap
from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.session import Array


@dataclass(frozen=True, slots=True)
class _Window:
    kernel: list[int]
    strides: list[int]
    pads: Pads
    counts: list[int]

    def needed(self, extent: int, axis: int) -> int:
        """Elements behind the padded end that the last window of ceil mode still touches."""
        reach = (self.counts[axis] - 1) * self.strides[axis] + self.kernel[axis]
        return max(reach - (extent + sum(self.pads[axis])), 0)


def _window(call: Call, x: Array) -> _Window:
    rank = x.ndim - 2
    if rank < 1:
        raise ValueError(f"x has rank {x.ndim}, expected 3 to 5")
    kernel, strides = call.ints("kernel_sizes"), call.ints("strides", [1] * rank)
    pads = resolve_pads(call.str("pad_type", "valid"), x.shape[2:], kernel, strides, call.ints("pad", [0] * 2 * rank))
    ceil_mode = call.bool("ceil_mode")
    counts = [
        output_size(d, p, k, s, ceil_mode=ceil_mode)
        for d, p, k, s in zip(x.shape[2:], pads, kernel, strides, strict=True)
    ]
    return _Window(kernel, strides, pads, counts)


def _fold(x: Array, window: _Window, fill: float, combine: np.ufunc) -> Array:
    """Combine the taps of every window; padding, and what ceil mode touches behind it, counts as ``fill``."""
    extra = [window.needed(d, i) for i, d in enumerate(x.shape[2:])]
    pads = [(b, a + e) for (b, a), e in zip(window.pads, extra, strict=True)]
    padded = pad_spatial(x, pads, fill)
    out: Array | None = None
    for offsets in np.ndindex(*window.kernel):
        view = tap(padded, offsets, window.strides, window.counts)
        out = view.copy() if out is None else combine(out, view, out=out)
    assert out is not None  # resolve_pads refuses empty kernels
    return out


@evaluates("max_pool")
def max_pool(call: Call) -> Array:
    x = call.wide("x")
    return _fold(x, _window(call, x), -np.inf, np.maximum)


@evaluates("l2_pool")
def l2_pool(call: Call) -> Array:
    x = call.wide("x")
    return np.sqrt(_fold(np.square(x), _window(call, x), 0.0, np.add))


@evaluates("avg_pool")
def avg_pool(call: Call) -> Array:
    """The mean over each window.

    Padding counts in the divisor unless ``exclude_padding_from_average``; what ceil mode reads behind the padding never
    does (PyTorch's rule, which MIL refers to).
    """
    x = call.wide("x")
    window = _window(call, x)
    divisor = np.ones((1, 1), dtype=np.float32)
    for axis, extent in enumerate(x.shape[2:]):
        counted = _counted(window, axis, extent, exclude=call.bool("exclude_padding_from_average"))
        divisor = divisor[..., None] * counted
    return _fold(x, window, 0.0, np.add) / divisor


def _counted(window: _Window, axis: int, extent: int, *, exclude: bool) -> Array:
    """How many elements of each window along ``axis`` enter the divisor, float32 [count]."""
    before, after = window.pads[axis]
    low, high = (before, before + extent) if exclude else (0, before + extent + after)
    start = np.arange(window.counts[axis]) * window.strides[axis]
    counted = np.minimum(start + window.kernel[axis], high) - np.maximum(start, low)
    return np.asarray(np.maximum(counted, 1).astype(np.float32))
