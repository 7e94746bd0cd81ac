"""Operators that move elements to places known when the model is built."""

from __future__ import annotations

import numpy as np

from compiler.decompose.builder import Array, Builder
from compiler.decompose.table import Undecomposable, decomposes


def _constant(b: Builder, index: int, what: str) -> Array:
    operand = b.operand(index)
    if operand is None or operand.constant is None:
        raise Undecomposable(f"its {what} is computed at run time")
    return operand.constant


@decomposes("Tile")
def tile(b: Builder) -> None:
    result = b.x.name
    for axis, count in enumerate(_constant(b, 1, "repeat count")):
        if count == 0:
            raise Undecomposable("it repeats nothing")
        if count > 1:
            result = b.op("Concat", *([result] * int(count)), axis=axis)
    b.output(result)


@decomposes("Expand")
def expand(b: Builder) -> None:
    """x * ones, and x or false for booleans: broadcasting does the rest."""
    if b.x.dtype == np.bool_:
        b.output(b.op("Or", b.x.name, np.zeros(b.y.shape, np.bool_)))
    else:
        b.output(b.op("Mul", b.x.name, np.ones(b.y.shape, b.x.dtype)))


@decomposes("Trilu")
def trilu(b: Builder) -> None:
    k = b.operand(1)
    offset = 0 if k is None else int(_constant(b, 1, "diagonal").ravel()[0])
    rows, columns = np.indices(b.x.shape[-2:])
    keep = columns - rows >= offset if b.attribute("upper", 1) else columns - rows <= offset
    b.output(b.op("Where", keep, b.x.name, b.constant(np.zeros((), b.x.dtype))))


@decomposes("OneHot")
def one_hot(b: Builder) -> None:
    """where(indices == 0..depth-1, on, off); negative indices count from the end."""
    depth = int(_constant(b, 1, "depth").ravel()[0])
    rank = len(b.x.shape) + 1
    axis = b.attribute("axis", -1) % rank
    shape = [*b.x.shape[:axis], 1, *b.x.shape[axis:]]
    indices = b.reshape(b.op("Cast", b.x.name, to=7), shape)
    wrapped = b.op("Where", b.op("Less", indices, np.array(0)), b.op("Add", indices, np.array(depth)), indices)
    positions = np.arange(depth, dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(rank)])
    values = b.node.input[2]
    off, on = (b.reshape(b.take(values, 0, i, i + 1), [1] * rank) for i in (0, 1))
    b.output(b.op("Where", b.op("Equal", wrapped, positions), on, off))


@decomposes("ReverseSequence")
def reverse_sequence(b: Builder) -> None:
    """Per batch element a gather with reversed positions up to its length."""
    lengths = _constant(b, 1, "sequence lengths")
    time, batch = b.attribute("time_axis", 0), b.attribute("batch_axis", 1)
    parts = []
    for index in range(b.x.shape[batch]):
        one = b.take(b.x.name, batch, index, index + 1)
        order = np.arange(b.x.shape[time], dtype=np.int64)
        order[: lengths[index]] = order[: lengths[index]][::-1]
        parts.append(b.op("Gather", one, order, axis=time))
    b.output(b.op("Concat", *parts, axis=batch))


@decomposes("DepthToSpace")
def depth_to_space(b: Builder) -> None:
    n, c, h, w = b.x.shape
    k = b.attribute("blocksize", None)
    if b.attribute("mode", "DCR") == "DCR":
        moved = b.transpose(b.reshape(b.x.name, [n, k, k, c // (k * k), h, w]), [0, 3, 4, 1, 5, 2])
    else:
        moved = b.transpose(b.reshape(b.x.name, [n, c // (k * k), k, k, h, w]), [0, 1, 4, 2, 5, 3])
    b.output(b.reshape(moved, b.y.shape))


@decomposes("SpaceToDepth")
def space_to_depth(b: Builder) -> None:
    n, c, h, w = b.x.shape
    k = b.attribute("blocksize", None)
    moved = b.transpose(b.reshape(b.x.name, [n, c, h // k, k, w // k, k]), [0, 3, 5, 1, 2, 4])
    b.output(b.reshape(moved, b.y.shape))


@decomposes("Pad")
def pad_by_gather(b: Builder) -> None:
    """Edge, reflect and wrap pads (and negative ones) as gathers along each axis."""
    mode = b.attribute("mode", "constant")
    pads = [int(p) for p in _constant(b, 1, "padding")]
    axes_operand = b.operand(3)
    rank = len(b.x.shape)
    axes = [int(a) % rank for a in _constant(b, 3, "axes")] if axes_operand is not None else list(range(rank))
    result = b.x.name
    kept: dict[int, tuple[int, int]] = {}
    for position, axis in enumerate(axes):
        before, after = pads[position], pads[position + len(axes)]
        size = b.x.shape[axis]
        if mode == "constant":
            if before < 0 or after < 0:
                result = b.take(result, axis, max(0, -before), size - max(0, -after))
            kept[axis] = (max(0, before), max(0, after))
        elif before or after:
            numbers = np.arange(-before, size + after)
            result = b.op("Gather", result, _source(numbers, size, mode).astype(np.int64), axis=axis)
    if mode == "constant":
        if all(p >= 0 for p in pads):
            raise Undecomposable("the runtime's own operator is needed")
        numbers = np.asarray(
            [*(kept.get(a, (0, 0))[0] for a in range(rank)), *(kept.get(a, (0, 0))[1] for a in range(rank))]
        )
        value = [b.node.input[2]] if b.operand(2) is not None else []
        result = b.op("Pad", result, numbers.astype(np.int64), *value)
    b.output(result)


def _source(positions: Array, size: int, mode: str) -> Array:
    """Where position ``i`` of the padded axis comes from."""
    if mode == "edge":
        return np.clip(positions, 0, size - 1)
    if mode == "wrap":
        return positions % size
    period = max(1, 2 * (size - 1))
    folded = positions % period
    return np.where(folded < size, folded, period - folded)


@decomposes("GatherElements")
def gather_elements(b: Builder) -> None:
    """A gather of the flattened input; the indices are flattened here if constant, by integer arithmetic otherwise."""
    indices = b.operand(1)
    assert indices is not None
    axis = b.attribute("axis", 0) % len(b.x.shape)
    rows = b.reshape(b.x.name, [-1])
    if indices.constant is not None:
        flat = b.constant(_flat(indices.constant, axis, b.x.shape).ravel())
        b.output(b.reshape(b.op("Gather", rows, flat), indices.shape))
        return
    elsewhere = _flat(np.zeros(indices.shape, np.int64), axis, b.x.shape).ravel()
    number = b.op("Cast", b.reshape(indices.name, [-1]), to=7)
    size, stride = b.x.shape[axis], int(np.prod(b.x.shape[axis + 1 :], dtype=np.int64))
    wrapped = b.op("Where", b.op("Less", number, np.array(0)), b.op("Add", number, np.array(size)), number)
    found = b.op("Gather", rows, b.op("Add", b.op("Mul", wrapped, np.array(stride)), elsewhere))
    b.output(b.reshape(found, indices.shape))


@decomposes("GatherND")
def batched_gather_nd(b: Builder) -> None:
    """Rows of the input flattened behind batch and indexed axes, at places computed by integer arithmetic."""
    indices, batch = b.operand(1), b.attribute("batch_dims", 0)
    assert indices is not None
    depth = indices.shape[-1]
    indexed = b.x.shape[batch : batch + depth]
    rows = b.reshape(b.x.name, [int(np.prod(b.x.shape[: batch + depth])), *b.x.shape[batch + depth :]])
    number = b.op("Cast", indices.name, to=7)
    sizes = np.asarray(indexed, np.int64)
    if indices.constant is not None and ((indices.constant >= sizes) | (indices.constant < -sizes)).any():
        raise Undecomposable("its indices lie outside the input")
    strides = np.asarray([int(np.prod(indexed[i + 1 :], dtype=np.int64)) for i in range(depth)], np.int64)
    wrapped = b.op("Where", b.op("Less", number, np.array(0)), b.op("Add", number, sizes), number)
    last = np.asarray([len(indices.shape) - 1], np.int64)
    flat = b.op("ReduceSum", b.op("Mul", wrapped, strides), last, keepdims=0)
    first = np.arange(int(np.prod(b.x.shape[:batch], dtype=np.int64)), dtype=np.int64) * int(np.prod(indexed))
    first = first.reshape([*b.x.shape[:batch], *[1] * (len(indices.shape) - 1 - batch)])
    b.output(b.op("Gather", rows, b.op("Add", flat, first), axis=0))


def _flat(indices: Array, axis: int, shape: tuple[int, ...]) -> Array:
    places = list(np.indices(indices.shape))
    places[axis] = np.where(indices < 0, indices + shape[axis], indices)
    flat: Array = np.ravel_multi_index(places, shape).astype(np.int64)
    return flat


@decomposes("ScatterElements", "Scatter")
def scatter_elements(b: Builder) -> None:
    """With constant indices."""
    indices = _constant(b, 1, "index")
    axis = b.attribute("axis", 0) % len(b.x.shape)
    _scatter(b, _flat(indices, axis, b.x.shape).ravel(), b.reshape(b.node.input[2], [-1]), width=1)


@decomposes("ScatterND")
def scatter_nd(b: Builder) -> None:
    """With constant indices: rows of the input flattened behind the indexed axes."""
    indices = _constant(b, 1, "index")
    depth = indices.shape[-1]
    rows = indices.reshape(-1, depth)
    rows = np.where(rows < 0, rows + np.asarray(b.x.shape[:depth]), rows)
    flat = np.ravel_multi_index(list(rows.T), b.x.shape[:depth])
    width = int(np.prod(b.x.shape[depth:], dtype=np.int64))
    _scatter(b, flat.astype(np.int64), b.reshape(b.node.input[2], [len(flat), width]), width)


def _scatter(b: Builder, flat: Array, updates: str, width: int) -> None:
    """Rounds of updates without duplicates, each applied as gather + where, in the standard's order."""
    reduction = b.attribute("reduction", "none")
    count = int(np.prod(b.x.shape, dtype=np.int64)) // width
    result = b.reshape(b.x.name, [count, width])
    updates = b.reshape(updates, [len(flat), width])
    combine = {"none": None, "add": "Add", "mul": "Mul", "max": "Max", "min": "Min"}[reduction]
    left = np.arange(len(flat))
    while len(left):
        if combine is None:  # the last of several wins
            _, reverse = np.unique(flat[::-1], return_index=True)
            chosen = len(flat) - 1 - reverse
        else:
            _, first = np.unique(flat[left], return_index=True)
            chosen = left[first]
        source, touched = np.zeros(count, np.int64), np.zeros((count, 1), np.bool_)
        source[flat[chosen]], touched[flat[chosen]] = chosen, True
        fresh = b.op("Gather", updates, source, axis=0)
        value = fresh if combine is None else b.op(combine, result, fresh)
        result = b.op("Where", touched, value, result)
        left = np.asarray([], np.int64) if combine is None else np.setdiff1d(left, chosen)
    b.output(b.reshape(result, b.x.shape))


@decomposes("Col2Im")
def col2im(b: Builder) -> None:
    """Blocks added to their places: one padded block per kernel tap, with zeros between for strides."""
    image = [int(v) for v in _constant(b, 1, "image shape")]
    block = [int(v) for v in _constant(b, 2, "block shape")]
    spatial = len(image)
    dilations, strides = b.attribute("dilations", None) or [1] * spatial, b.attribute("strides", None) or [1] * spatial
    pads = b.attribute("pads", None) or [0] * (2 * spatial)
    batch, channels = b.x.shape[0], b.x.shape[1] // int(np.prod(block))
    padded = [image[i] + pads[i] + pads[i + spatial] for i in range(spatial)]
    places = np.arange(int(np.prod(padded))).reshape(padded)
    counts = [(padded[i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(spatial)]
    targets = []
    for tap in np.ndindex(*block):
        index = [tap[i] * dilations[i] + strides[i] * np.arange(counts[i]) for i in range(spatial)]
        targets.append(places[np.ix_(*index)].ravel())
    flat = np.concatenate(targets)
    matrix = np.zeros((len(flat), places.size), np.float32)
    matrix[np.arange(len(flat)), flat] = 1
    whole = b.op("MatMul", b.reshape(b.x.name, [batch, channels, len(flat)]), matrix)
    result = b.reshape(whole, [batch, channels, *padded])
    for i in range(spatial):
        result = b.take(result, i + 2, pads[i], pads[i] + image[i])
    b.output(result)
