"""Gather, scatter and sorting.

Negative indices count from the end up to iOS16. iOS17 calls them out of bounds unless validated; here they still count
from the end, and an index outside the axis is always an error. Source: iOS15, iOS16 and iOS17 scatter_gather.py.
"""

from __future__ import annotations

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.coreml_reference.types import check_size
from runtimes.session import Array


@evaluates("gather")
def gather(call: Call) -> Array:
    """Shape D[:axis] + N[batch_dims:] + D[axis+1:]."""
    x, indices = call["x"], call["indices"].astype(np.int64)
    axis, batch = call.int("axis", 0) % max(x.ndim, 1), call.int("batch_dims", 0)
    if batch == 0:
        check_size([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]], x.dtype.itemsize)
        return np.take(x, indices, axis=axis)
    if batch < 0 or batch > axis or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"batch_dims {batch} do not fit x {list(x.shape)}, indices {list(indices.shape)}")
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat_i = indices.reshape(-1, *indices.shape[batch:])
    rows = [np.take(a, i, axis=axis - batch) for a, i in zip(flat_x, flat_i, strict=True)]
    return np.stack(rows).reshape(*x.shape[:batch], *rows[0].shape)


@evaluates("gather_along_axis")
def gather_along_axis(call: Call) -> Array:
    return np.take_along_axis(call["x"], call["indices"].astype(np.int64), axis=call.int("axis", 0))


@evaluates("gather_nd")
def gather_nd(call: Call) -> Array:
    x, indices, batch = call["x"], call["indices"].astype(np.int64), call.int("batch_dims", 0)
    if batch == 0:
        return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat_i = indices.reshape(-1, *indices.shape[batch:])
    rows = [a[tuple(np.moveaxis(i, -1, 0))] for a, i in zip(flat_x, flat_i, strict=True)]
    return np.stack(rows).reshape(*x.shape[:batch], *rows[0].shape)


_COMBINE: dict[str, np.ufunc] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


def _combine(target: Array, index: tuple[Array | slice, ...], updates: Array, mode: str) -> Array:
    """Apply ``updates`` at ``index``; repeated indices accumulate, and with "update" the last one wins."""
    out = target.copy()
    if mode == "update":
        out[index] = updates
    elif mode in _COMBINE:
        _COMBINE[mode].at(out, index, updates)
    else:
        raise ValueError(f"mode {mode!r} is not known")
    return out


@evaluates("scatter")
def scatter(call: Call) -> Array:
    data, indices = call.wide("data"), call["indices"].astype(np.int64)
    axis = call.int("axis", 0) % data.ndim
    index = (slice(None),) * axis + (indices,)
    return _combine(data, index, call.wide("updates"), call.str("mode", "add"))


@evaluates("scatter_along_axis")
def scatter_along_axis(call: Call) -> Array:
    data, indices = call.wide("data"), call["indices"].astype(np.int64)
    axis = call.int("axis", 0) % data.ndim
    grid = list(np.ogrid[tuple(slice(d) for d in indices.shape)])
    grid[axis] = indices
    return _combine(data, tuple(grid), call.wide("updates"), call.str("mode", "add"))


@evaluates("scatter_nd")
def scatter_nd(call: Call) -> Array:
    indices = call["indices"].astype(np.int64)
    index = tuple(np.moveaxis(indices, -1, 0))
    return _combine(call.wide("data"), index, call.wide("updates"), call.str("mode", "add"))


@evaluates("argsort")
def argsort(call: Call) -> Array:
    return _order(call["x"], call.int("axis", -1), ascending=call.bool("ascending"))


@evaluates("topk")
def topk(call: Call) -> tuple[Array, ...]:
    """Values and indices of the ``k`` largest (``ascending``: smallest), sorted; k -1 takes all."""
    x, axis = call["x"], call.int("axis", -1)
    k = call.int("k", 1)
    if k > x.shape[axis] or k < -1:
        raise ValueError(f"k {k} exceeds the {x.shape[axis]} elements of axis {axis}")
    order = _order(x, axis, ascending=call.bool("ascending"))
    chosen = np.take(order, np.arange(x.shape[axis] if k == -1 else k), axis=axis)
    return np.take_along_axis(x, chosen, axis=axis), chosen


def _order(x: Array, axis: int, *, ascending: bool) -> Array:
    """Stable in both directions: among equals the lower index comes first, as in PyTorch and TensorFlow."""
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    flipped = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return np.asarray(x.shape[axis] - 1 - np.flip(flipped, axis))


@evaluates("non_zero")
def non_zero(call: Call) -> Array:
    return np.argwhere(call["x"])


@evaluates("one_hot")
def one_hot(call: Call) -> Array:
    """An index outside the vector gives a row of ``off_value``."""
    indices, size = call["indices"].astype(np.int64), call.int("one_hot_vector_size")
    on = call["on_value"] if call.has("on_value") else np.int32(1)
    off = call["off_value"] if call.has("off_value") else np.int32(0)
    check_size([*indices.shape, size], 8)
    hot = np.where(indices[..., None] == np.arange(size), on, off)
    return np.moveaxis(hot, -1, call.int("axis", -1))
