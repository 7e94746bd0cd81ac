"""conv and conv_transpose, in one to three spatial dimensions.

Three ways to the same sums: a pointwise kernel is one matrix product; a depthwise kernel adds up shifted, scaled views
(a matrix product would have inner dimension K only); everything else copies windows into columns, a slab at a time.

Source: coremltools MIL ops, iOS15 conv.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from runtimes.coreml_reference.ops.windows import Pads, output_size, pad_spatial, resolve_pads, tap
from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.coreml_reference.types import check_size
from runtimes.session import Array

# Columns copied at once. Larger slabs leave the cache and gain nothing; long 1-D kernels would take gigabytes.
_SLAB_ELEMENTS = 4 << 20


@evaluates("conv")
def conv(call: Call) -> Array:
    x, weight, bias = call.wide("x"), call.wide("weight"), call.get("bias")
    rank = x.ndim - 2
    if rank < 1 or weight.ndim != x.ndim:
        raise ValueError(f"x has rank {x.ndim}, weight rank {weight.ndim}; both need the same, 3 to 5")
    strides, dilations = call.ints("strides", [1] * rank), call.ints("dilations", [1] * rank)
    groups = call.int("groups", 1)
    if groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(f"x {list(x.shape)}, weight {list(weight.shape)} and groups {groups} do not fit")
    extents = dilated(weight.shape[2:], dilations)
    pads = resolve_pads(call.str("pad_type", "valid"), x.shape[2:], extents, strides, call.ints("pad", [0] * 2 * rank))
    out = convolve(x, weight, strides, dilations, groups, pads)
    return out if bias is None else out + bias.reshape((-1,) + (1,) * rank)


def dilated(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    if len(dilations) != len(kernel) or any(d < 1 for d in dilations):
        raise ValueError(f"dilations {list(dilations)} do not fit kernel {list(kernel)}")
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]


def convolve(
    x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int, pads: Pads
) -> Array:
    """Correlate x [N, C, *D] with weight [O, C/groups, *K] to [N, O, *out], of x's type."""
    extents = dilated(weight.shape[2:], dilations)
    counts = [output_size(*item) for item in zip(x.shape[2:], pads, extents, strides, strict=True)]
    check_size([x.shape[0], weight.shape[0], *counts], x.dtype.itemsize)
    x = pad_spatial(x, pads)
    if weight.shape[1] == 1 and groups > 1:
        return _depthwise(x, weight, strides, dilations, counts)
    outputs = [
        _dense(xg, wg, strides, dilations, counts)
        for xg, wg in zip(np.split(x, groups, axis=1), np.split(weight, groups, axis=0), strict=True)
    ]
    return outputs[0] if groups == 1 else np.concatenate(outputs, axis=1)


def _depthwise(
    x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Array:
    multiplier = weight.shape[0] // x.shape[1]
    if multiplier > 1:  # output channel c * multiplier + m reads input channel c
        x = np.repeat(x, multiplier, axis=1)
    out = np.zeros((x.shape[0], weight.shape[0], *counts), dtype=x.dtype)
    product = np.empty_like(out)
    for position in np.ndindex(*weight.shape[2:]):
        offsets = [p * d for p, d in zip(position, dilations, strict=True)]
        scale = weight[(slice(None), 0, *position)].reshape((-1,) + (1,) * len(counts))
        np.multiply(tap(x, offsets, strides, counts), scale, out=product)
        out += product
    return out


def _dense(x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]) -> Array:
    rows = weight.reshape(weight.shape[0], -1)
    if math.prod(weight.shape[2:]) == 1:
        seen = np.ascontiguousarray(tap(x, [0] * len(counts), strides, counts))
        return np.asarray(np.matmul(rows, seen.reshape(*seen.shape[:2], -1)).reshape(x.shape[0], -1, *counts))
    windows = _windows(x, weight.shape[2:], strides, dilations)
    out = np.empty((x.shape[0], weight.shape[0], *counts), dtype=x.dtype)
    # Cut along the longest output dimension, so that a slab of columns has about _SLAB_ELEMENTS.
    axis = int(np.argmax(counts))
    step = max(1, _SLAB_ELEMENTS * counts[axis] // max(1, rows.shape[1] * math.prod(counts)))
    for n in range(x.shape[0]):
        for start in range(0, counts[axis], step):
            cut = (slice(None),) * (axis + 1) + (slice(start, start + step),)
            slab = windows[n][cut]
            columns = np.ascontiguousarray(_kernel_first(slab, len(counts))).reshape(rows.shape[1], -1)
            part = rows @ columns
            out[n][cut] = part.reshape(weight.shape[0], *slab.shape[1 : 1 + len(counts)])
    return out


def _windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """A view [N, C, *out, *K] of every window."""
    rank = len(kernel)
    spatial = tuple(range(2, 2 + rank))
    view: Array = sliding_window_view(x, dilated(kernel, dilations), axis=spatial)  # type: ignore[call-overload]
    every = (slice(None), slice(None))
    return np.asarray(
        view[every + tuple(slice(None, None, s) for s in strides) + tuple(slice(None, None, d) for d in dilations)]
    )


def _kernel_first(slab: Array, rank: int) -> Array:
    """[C, *out, *K] to [C, *K, *out]: the order in which weight rows are flattened."""
    return slab.transpose(0, *range(1 + rank, 1 + 2 * rank), *range(1, 1 + rank))


@evaluates("conv_transpose")
def conv_transpose(call: Call) -> Array:
    """The gradient of conv: every input element adds its kernel, scaled, to the output, which is then cropped by pad.

    weight [C_in, C_out/groups, *K]. Where ``output_shape`` or pad_type "same" asks for another size than pads give, the
    difference is cropped (or zero-extended) half before and half after, the odd element after, as conv's "same" does.
    """
    x, weight, bias = call.wide("x"), call.wide("weight"), call.get("bias")
    rank = x.ndim - 2
    strides, dilations = call.ints("strides", [1] * rank), call.ints("dilations", [1] * rank)
    groups = call.int("groups", 1)
    if rank < 1 or weight.ndim != x.ndim or len(strides) != rank or groups < 1:
        raise ValueError(f"x {list(x.shape)}, weight {list(weight.shape)}, strides {strides} do not fit")
    if x.shape[1] != weight.shape[0] or x.shape[1] % groups:
        raise ValueError(f"x {list(x.shape)}, weight {list(weight.shape)} and groups {groups} do not fit")
    full = _scatter_kernels(x, weight, strides, dilations, groups)
    out = _crop(call, full, x.shape[2:], strides)
    return out if bias is None else out + bias.reshape((-1,) + (1,) * rank)


def _scatter_kernels(x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Array:
    """[N, C_in, *D] to the uncropped [N, C_out, *((D - 1) * stride + extent)]."""
    extents = dilated(weight.shape[2:], dilations)
    sizes = [(d - 1) * s + e for d, s, e in zip(x.shape[2:], strides, extents, strict=True)]
    per_group = weight.shape[1]
    check_size([x.shape[0], per_group * groups, *sizes], x.dtype.itemsize)
    out = np.zeros((x.shape[0], per_group * groups, *sizes), dtype=x.dtype)
    flat = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    kernels = weight.reshape(groups, weight.shape[0] // groups, per_group, *weight.shape[2:])
    for position in np.ndindex(*weight.shape[2:]):
        mix = kernels[(slice(None), slice(None), slice(None), *position)].transpose(0, 2, 1)  # [g, out, in]
        part = np.matmul(mix, flat).reshape(x.shape[0], per_group * groups, *x.shape[2:])
        offsets = [p * d for p, d in zip(position, dilations, strict=True)]
        view = tap(out, offsets, strides, x.shape[2:])
        view += part
    return out


def _crop(call: Call, full: Array, size: Sequence[int], strides: Sequence[int]) -> Array:
    rank = len(size)
    pad = call.ints("pad", [0] * 2 * rank)
    pad_type = call.str("pad_type", "valid")
    if len(pad) != 2 * rank or pad_type not in ("valid", "same", "custom"):
        raise ValueError(f"pad {pad} with pad_type {pad_type!r} is not possible in {rank} dimensions")
    if call.has("output_shape"):
        wanted = call.ints("output_shape")[2:]
    elif pad_type == "same":
        wanted = [d * s for d, s in zip(size, strides, strict=True)]
    else:
        wanted = []
    pads = [(pad[2 * i], pad[2 * i + 1]) if pad_type == "custom" else (0, 0) for i in range(rank)]
    if wanted:
        if pad_type != "custom":
            spare = [max(full.shape[2 + i] - wanted[i], 0) for i in range(rank)]
            pads = [(s // 2, s - s // 2) for s in spare]
        # With custom pads the leading crop is given and the trailing one follows from the wanted size.
        pads = [(before, full.shape[2 + i] - before - wanted[i]) for i, (before, _) in enumerate(pads)]
    short = [(0, max(-after, 0)) for _, after in pads]
    full = pad_spatial(full, short)
    index = tuple(slice(b, full.shape[2 + i] - max(a, 0)) for i, (b, a) in enumerate(pads))
    return full[(slice(None), slice(None), *index)]
