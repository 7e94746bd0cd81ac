"""Operations that make tensors or extend them. Source: coremltools MIL ops, iOS15 and iOS16 tensor_operation.py."""

from __future__ import annotations

import math

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.coreml_reference.types import check_size
from runtimes.session import Array


@evaluates("pad")
def pad(call: Call) -> Array:
    """``pad`` holds (before, after) of the last dimensions; modes constant, reflect (no edge), replicate."""
    x, amounts, mode = call["x"], call.ints("pad"), call.str("mode", "constant")
    if len(amounts) % 2 or len(amounts) > 2 * x.ndim or min(amounts, default=0) < 0:
        raise ValueError(f"pad {amounts} does not fit rank {x.ndim}")
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    check_size([d + b + a for d, (b, a) in zip(x.shape, pairs, strict=True)], x.dtype.itemsize)
    if mode == "constant":
        value = call["constant_val"].ravel()[0] if call.has("constant_val") else 0
        return np.pad(x, pairs, constant_values=value)
    if mode == "reflect":
        # numpy would reflect again and again; MIL allows D - 1 at most.
        if any(max(p) > d - 1 for p, d in zip(pairs, x.shape, strict=True) if max(p)):
            raise ValueError(f"reflecting {pairs} exceeds the shape {list(x.shape)} less one")
        return np.pad(x, pairs, mode="reflect")
    if mode == "replicate":
        return np.pad(x, pairs, mode="edge")
    raise ValueError(f"mode {mode!r} is not known")


@evaluates("tile")
def tile(call: Call) -> Array:
    x, reps = call["x"], call.ints("reps")
    if len(reps) != x.ndim:
        raise ValueError(f"reps {reps} do not fit rank {x.ndim}")
    check_size([d * r for d, r in zip(x.shape, reps, strict=True)], x.dtype.itemsize)
    return np.tile(x, reps)


@evaluates("fill")
def fill(call: Call) -> Array:
    shape = call.ints("shape")
    check_size(shape, 8)
    return np.full(shape, call["value"].ravel()[0] if call.has("value") else np.float32(0))


@evaluates("fill_like")
def fill_like(call: Call) -> Array:
    shape = call["ref_tensor"].shape
    return np.full(shape, call["value"].ravel()[0] if call.has("value") else np.float32(0))


@evaluates("range_1d")
def range_1d(call: Call) -> Array:
    start, end, step = call.wide("start"), call.wide("end"), call.wide("step")
    if step == 0:
        raise ValueError("step is 0")
    count = max(math.ceil((float(end) - float(start)) / float(step)), 0)
    check_size([count], 8)
    return np.asarray(start + np.arange(count, dtype=start.dtype) * step).reshape(count)


@evaluates("cumsum")
def cumsum(call: Call) -> Array:
    x, axis = call.wide("x"), call.int("axis", 0)
    backwards, exclusive = call.bool("reverse"), call.bool("exclusive")
    x = np.flip(x, axis) if backwards else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    if exclusive:
        head = np.zeros_like(np.take(x, [0], axis=axis))
        total = np.concatenate([head, np.take(total, np.arange(x.shape[axis] - 1), axis=axis)], axis=axis)
    return np.flip(total, axis) if backwards else total


@evaluates("band_part")
def band_part(call: Call) -> Array:
    """Keep (m, n) where (lower < 0 or m - n <= lower) and (upper < 0 or n - m <= upper)."""
    x, lower, upper = call["x"], call.int("lower", -1), call.int("upper", -1)
    m, n = np.ogrid[: x.shape[-2], : x.shape[-1]]
    keep = ((lower < 0) | (m - n <= lower)) & ((upper < 0) | (n - m <= upper))
    return np.where(keep, x, np.zeros((), x.dtype))


@evaluates("sliding_windows")
def sliding_windows(call: Call) -> Array:
    """Windows of ``size`` along ``axis``; the window's own axis follows it."""
    x, size, stride = call["x"], call.int("size"), call.int("stride", 1)
    axis = call.int("axis") % x.ndim
    view = np.lib.stride_tricks.sliding_window_view(x, size, axis=axis)
    view = view[(slice(None),) * axis + (slice(None, None, stride),)]
    check_size(view.shape, x.dtype.itemsize)
    return np.ascontiguousarray(np.moveaxis(view, -1, axis + 1))
