"""Pools as other pools."""

from __future__ import annotations

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.ops.integers import back
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("LpPool")
def lp_pool(b: Builder) -> None:
    """(k * average(|x|^p))^(1/p), k the number of taps: what is padded adds zero to the sum."""
    p = b.attribute("p", 2)
    kernel = b.attribute("kernel_shape", None)
    assert kernel is not None
    size = b.op("Abs", b.x.name)
    powers = b.op("Mul", size, size) if p == 2 else b.op("Pow", size, b.like(float(p)))
    kept = ("auto_pad", "ceil_mode", "dilations", "pads", "strides")
    attributes = {name: value for name in kept if (value := b.attribute(name, None)) is not None}
    average = b.op("AveragePool", powers, kernel_shape=kernel, count_include_pad=1, **attributes)
    taps = 1
    for size_k in kernel:
        taps *= size_k
    b.output(_root(b, b.op("Mul", average, b.like(float(taps))), p))


@decomposes("GlobalLpPool")
def global_lp_pool(b: Builder) -> None:
    p = b.attribute("p", 2)
    axes = np.arange(2, len(b.x.shape), dtype=np.int64)
    powers = b.op("Pow", b.op("Abs", b.x.name), b.like(float(p)))
    b.output(_root(b, b.op("ReduceSum", powers, axes, keepdims=1), p))


def _root(b: Builder, name: str, p: int) -> str:
    if p == 1:
        return name
    return b.op("Sqrt", name) if p == 2 else b.op("Pow", name, b.like(1.0 / p))


@decomposes("MaxPool", "AveragePool")
def pool_by_slices(b: Builder) -> None:
    """Dilated and three-dimensional pools: axis by axis, the maximum or sum of one strided slice per tap."""
    if b.wanted(1) and b.x.dtype == np.float32:
        _with_indices(b)
        return
    if b.wanted(1) or b.x.dtype.name not in ("float32", "int8", "uint8"):
        raise Undecomposable("its indices are used, or its type has no padding value")
    spatial = len(b.x.shape) - 2
    kernel = b.attribute("kernel_shape", None)
    strides = b.attribute("strides", None) or [1] * spatial
    dilations = b.attribute("dilations", None) or [1] * spatial
    if set(dilations) == {1} and spatial < 3 and b.x.dtype.name == "float32":
        raise Undecomposable("the runtime's own operator is needed")
    average = b.node.op_type == "AveragePool"
    if not average and b.x.dtype != np.float32 and set(dilations) == {1} and spatial < 3:
        _in_float(b)
        return
    include = bool(b.attribute("count_include_pad", 0))
    result, counts = b.x.name, np.ones((1, 1), np.float64)
    for i in range(spatial):
        axis, out = i + 2, b.y.shape[i + 2]
        size, before, after = _pads(b, i, kernel[i], strides[i], dilations[i], out)
        fill = 0 if average else _lowest(b)
        result = _filled(b, result, axis, before, max(0, after), fill)
        span = (out - 1) * strides[i] + 1
        taps = [b.take(result, axis, k * dilations[i], k * dilations[i] + span, strides[i]) for k in range(kernel[i])]
        result = taps[0]
        for tap in taps[1:]:
            result = b.op("Add" if average else "Max", result, tap)
        first = np.arange(out)[:, None] * strides[i] - before + np.arange(kernel[i])[None, :] * dilations[i]
        low, high = (-before, size + _declared(b, i, after)) if include else (0, size)
        counted = ((first >= low) & (first < high)).sum(axis=1)
        counts = counts[..., None] * counted
    if average:
        if not counts.all():
            raise Undecomposable("a window lies wholly in its padding")
        result = b.op("Div", result, counts.astype(np.float32))
    b.output(result)


def _in_float(b: Builder) -> None:
    """Bytes, whose order float32 keeps."""
    kept = ("auto_pad", "ceil_mode", "kernel_shape", "pads", "strides")
    attributes = {name: value for name in kept if (value := b.attribute(name, None)) is not None}
    b.output(back(b, b.op("MaxPool", b.op("Cast", b.x.name, to=1), **attributes)))


def _with_indices(b: Builder) -> None:
    """One strided slice per tap; where a tap is larger than all before it, its place in the flattened input is kept."""
    batch, channels, *sizes = b.x.shape
    spatial, out, kernel = len(sizes), b.y.shape[2:], b.attribute("kernel_shape", None)
    strides = b.attribute("strides", None) or [1] * spatial
    dilations = b.attribute("dilations", None) or [1] * spatial
    source, befores = b.x.name, []
    for i in range(spatial):
        _, before, after = _pads(b, i, kernel[i], strides[i], dilations[i], out[i])
        source = _filled(b, source, i + 2, before, max(0, after), _lowest(b))
        befores.append(before)
    count = np.arange(int(np.prod(sizes)))
    columns_first = bool(b.attribute("storage_order", 0))
    numbers = count.reshape(sizes, order="F") if columns_first else count.reshape(sizes)
    planes = (np.arange(batch * channels) * numbers.size).reshape(batch, channels, *[1] * spatial)
    best = place = ""
    for tap in np.ndindex(*kernel):
        part, where = source, []
        for i in range(spatial):
            start = tap[i] * dilations[i]
            part = b.take(part, i + 2, start, start + (out[i] - 1) * strides[i] + 1, strides[i])
            where.append(np.clip(np.arange(out[i]) * strides[i] + start - befores[i], 0, sizes[i] - 1))
        mine = (numbers[np.ix_(*where)] + planes).astype(np.int64)
        if not best:
            best, place = part, b.constant(mine)
            continue
        better = b.op("Greater", part, best)
        best, place = b.op("Max", best, part), b.op("Where", better, mine, place)
    b.output(best)
    b.output(place, 1)


def _pads(b: Builder, i: int, kernel: int, stride: int, dilation: int, out: int) -> tuple[int, int, int]:
    """The axis's size, the padding in front, and behind as far as the windows reach."""
    size, spatial = b.x.shape[i + 2], len(b.x.shape) - 2
    reach = (out - 1) * stride + (kernel - 1) * dilation + 1
    mode = b.attribute("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        total = max(0, reach - size)
        before = total // 2 if mode == "SAME_UPPER" else total - total // 2
    else:
        pads = b.attribute("pads", None) or [0] * (2 * spatial)
        before = pads[i] if mode == "NOTSET" else 0
    return size, before, reach - size - before


def _declared(b: Builder, i: int, after: int) -> int:
    """Padding behind that count_include_pad counts: what the attribute says, not what ceil_mode adds."""
    pads, spatial = b.attribute("pads", None), len(b.x.shape) - 2
    if b.attribute("auto_pad", "NOTSET") != "NOTSET":
        return max(0, after)
    return pads[i + spatial] if pads else 0


def _lowest(b: Builder) -> float:
    return -np.inf if b.x.dtype == np.float32 else int(np.iinfo(b.x.dtype).min)


def _filled(b: Builder, name: str, axis: int, before: int, after: int, fill: float) -> str:
    if not before and not after:
        return name
    rank = len(b.x.shape)
    pads = np.zeros(2 * rank, np.int64)
    pads[axis], pads[axis + rank] = before, after
    return b.op("Pad", name, pads, b.constant(fill, b.x.dtype))
