"""Operations that move or rearrange elements without computing.

Source: coremltools MIL ops, iOS15 tensor_transformation.py, iOS16 and iOS17 tensor_transformation.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.session import Array


@evaluates("reshape")
def reshape(call: Call) -> Array:
    """``0`` keeps the dimension at the same place (equal ranks only), one ``-1`` takes what remains."""
    x, shape = call["x"], call.ints("shape")
    if 0 in shape and x.size:
        if len(shape) != x.ndim:
            raise ValueError(f"shape {shape} copies dimensions, but x has rank {x.ndim}")
        shape = [have if want == 0 else want for want, have in zip(shape, x.shape, strict=True)]
    return x.reshape(shape)


@evaluates("transpose")
def transpose(call: Call) -> Array:
    return call["x"].transpose(call.ints("perm"))


@evaluates("expand_dims")
def expand_dims(call: Call) -> Array:
    return np.expand_dims(call["x"], tuple(call.ints("axes")))


@evaluates("squeeze")
def squeeze(call: Call) -> Array:
    return np.squeeze(call["x"], tuple(call.ints("axes")) if call.has("axes") else None)


@evaluates("flatten2d")
def flatten2d(call: Call) -> Array:
    x, axis = call["x"], call.int("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


@evaluates("shape")
def shape_of(call: Call) -> Array:
    return np.array(call["x"].shape, dtype=np.int32)


@evaluates("concat")
def concat(call: Call) -> Array:
    """``interleave`` takes one slice of each value in turn; all values then have one shape."""
    values, axis = call.many("values"), call.int("axis")
    if not call.bool("interleave"):
        return np.concatenate(values, axis=axis)
    axis %= values[0].ndim
    shape = list(values[0].shape)
    shape[axis] *= len(values)
    return np.stack(values, axis=axis + 1).reshape(shape)


@evaluates("stack")
def stack(call: Call) -> Array:
    return np.stack(call.many("values"), axis=call.int("axis"))


@evaluates("split")
def split(call: Call) -> tuple[Array, ...]:
    """``split_sizes``, or ``num_splits`` equal parts."""
    x, axis = call["x"], call.int("axis")
    if not call.has("split_sizes"):
        return tuple(np.split(x, call.int("num_splits"), axis=axis))
    sizes = call.ints("split_sizes")
    if sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise ValueError(f"split_sizes {sizes} do not add up to {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


@evaluates("reverse")
def reverse(call: Call) -> Array:
    return np.flip(call["x"], tuple(call.ints("axes")) if call.has("axes") else None)


@evaluates("depth_to_space")
def depth_to_space(call: Call) -> Array:
    """Channel index = (block row, block column, channel): TensorFlow's order."""
    x, block = call["x"], call.int("block_size")
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w)
    return parts.transpose(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)


@evaluates("space_to_depth")
def space_to_depth(call: Call) -> Array:
    x, block = call["x"], call.int("block_size")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block)
    return parts.transpose(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)


@evaluates("pixel_shuffle")
def pixel_shuffle(call: Call) -> Array:
    """Channel index = (channel, block row, block column): PyTorch's order."""
    x, factor = call["x"], call.int("upscale_factor")
    n, c, h, w = x.shape
    parts = x.reshape(n, c // factor**2, factor, factor, h, w)
    return parts.transpose(0, 1, 4, 2, 5, 3).reshape(n, c // factor**2, h * factor, w * factor)


@evaluates("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Array:
    x, factor = call["x"], call.int("downscale_factor")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // factor, factor, w // factor, factor)
    return parts.transpose(0, 1, 3, 5, 2, 4).reshape(n, c * factor**2, h // factor, w // factor)


@evaluates("slice_by_index")
def slice_by_index(call: Call) -> Array:
    return call["x"][slices(call)]


@evaluates("slice_update")
def slice_update(call: Call) -> Array:
    out = call["x"].copy()
    out[slices(call)] = call["update"]
    return out


def slices(call: Call) -> tuple[slice | int, ...]:
    """begin:end:stride per dimension; a mask opens the bound, ``squeeze_mask`` indexes and drops the dimension."""
    begin, end = call.ints("begin"), call.ints("end")
    rank = len(begin)
    stride = call.ints("stride", [1] * rank)
    masks = [call.ints(name, [0] * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")]
    if rank != call["x"].ndim or len(end) != rank or len(stride) != rank or any(len(m) != rank for m in masks):
        raise ValueError(f"begin {begin}, end {end}, stride {stride} do not fit rank {call['x'].ndim}")
    return tuple(
        b if squeezed else slice(None if open_begin else b, None if open_end else e, s)
        for b, e, s, open_begin, open_end, squeezed in zip(begin, end, stride, *masks, strict=True)
    )


@evaluates("slice_by_size")
def slice_by_size(call: Call) -> Array:
    """``size`` -1 takes everything behind ``begin``."""
    x, begin, size = call["x"], call.ints("begin"), call.ints("size")
    ends = [d if s == -1 else b + s for d, b, s in zip(x.shape, begin, size, strict=True)]
    if any(b < 0 or e < b or e > d for b, e, d in zip(begin, ends, x.shape, strict=True)):
        raise ValueError(f"begin {begin}, size {size} leave the shape {list(x.shape)}")
    return x[tuple(slice(b, e) for b, e in zip(begin, ends, strict=True))]


@evaluates("space_to_batch")
def space_to_batch(call: Call) -> Array:
    """Source: tf.space_to_batch_nd, which the MIL operation mirrors for [N, C, H, W]."""
    x, block = call["x"], call.ints("block_shape")
    pads = [(0, 0), (0, 0), *_pairs(call.ints("paddings"))]
    x = np.pad(x, pads)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block[0], block[0], w // block[1], block[1])
    return parts.transpose(3, 5, 0, 1, 2, 4).reshape(n * block[0] * block[1], c, h // block[0], w // block[1])


@evaluates("batch_to_space")
def batch_to_space(call: Call) -> Array:
    x, block, crops = call["x"], call.ints("block_shape"), _pairs(call.ints("crops"))
    n, c, h, w = x.shape
    parts = x.reshape(block[0], block[1], n // (block[0] * block[1]), c, h, w)
    full = parts.transpose(2, 3, 4, 0, 5, 1).reshape(-1, c, h * block[0], w * block[1])
    (top, bottom), (left, right) = crops
    return full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right]


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    if len(flat) != 4:
        raise ValueError(f"expected two pairs, got {list(flat)}")
    return [(flat[0], flat[1]), (flat[2], flat[3])]


@evaluates("reverse_sequence")
def reverse_sequence(call: Call) -> Array:
    """Of each element of ``batch_axis``, the first ``lengths`` elements of ``seq_axis`` in reverse."""
    x, lengths = call["x"], call.ints("lengths")
    steps, batch = call.int("seq_axis", 0) % x.ndim, call.int("batch_axis", 0) % x.ndim
    if steps == batch or len(lengths) != x.shape[batch] or not all(0 <= n <= x.shape[steps] for n in lengths):
        raise ValueError(f"lengths {lengths} along axis {steps} do not fit {list(x.shape)}")
    result = np.moveaxis(x.copy(), (batch, steps), (0, 1))
    for row, length in zip(result, lengths, strict=True):
        row[:length] = row[:length][::-1].copy()
    return np.moveaxis(result, (0, 1), (batch, steps))


@evaluates("reshape_like")
def reshape_like(call: Call) -> Array:
    """The shapes of the reference tensors, each from ``begins`` to ``ends`` (to its end where masked), one behind the other."""
    parts = zip(call.many("ref_tensors"), call.many("begins"), call.many("ends"), call.many("end_masks"), strict=True)
    shape = [d for ref, begin, end, whole in parts for d in ref.shape[int(begin) : None if bool(whole) else int(end)]]
    return call["x"].reshape(shape)
