"""Operators that read an image at places computed at run time (RoiAlign, DeformConv, AffineGrid) or write there (MaxUnpool)."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from compiler.decompose.builder import Array, Builder
from compiler.decompose.ops.resampling import Sampler, linear_taps
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("AffineGrid")
def affine_grid(b: Builder) -> None:
    """theta times the homogeneous coordinates of every place, which are constant.

    Source: ONNX's definition; the coordinates are -1..1 at the outer elements with align_corners, half an element inside without.
    """
    size = b.operand(1)
    if size is None or size.constant is None:
        raise Undecomposable("its size is computed at run time")
    dims = [int(d) for d in size.constant][2:]
    axes = [_unit_range(d, bool(b.attribute("align_corners", 0))) for d in dims]
    places = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(dims)], axis=-1).reshape(-1, len(dims) + 1)
    theta = b.transpose(b.x.name, [0, 2, 1])
    b.output(b.reshape(b.op("MatMul", places.astype(np.float32), theta), b.y.shape))


def _unit_range(size: int, align: bool) -> Array:
    if align:
        return np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
    return (2 * np.arange(size) + 1) / size - 1


@decomposes("RoiAlign")
def roi_align(b: Builder) -> None:
    """Interpolation is separable: per region one matrix along the rows, one along the columns.

    Source: ONNX's definition and its reference for places outside: up to one element they count for the edge, beyond not at all.
    The maximum is taken over the four weighted neighbours of each sample, as the reference has it.
    """
    ratio = b.attribute("sampling_ratio", 0)
    if ratio <= 0:
        raise Undecomposable("its number of samples depends on the regions")
    samples = [_samples(b, axis, ratio) for axis in (0, 1)]
    chosen = b.op("Gather", b.x.name, b.node.input[2], axis=0)
    out = b.y.shape[2:]
    if b.attribute("mode", "avg") == "avg":
        rows, columns = (_mean_weights(b, samples[axis], axis, out[axis], ratio) for axis in (0, 1))
        b.output(_applied(b, rows, columns, chosen))
        return
    ends = [_end_weights(b, samples[axis], axis) for axis in (0, 1)]
    best: str | None = None
    for rows in ends[0]:
        for columns in ends[1]:
            term = _applied(b, rows, columns, chosen)
            best = term if best is None else b.op("Max", best, term)
    assert best is not None
    shape = [b.y.shape[0] * b.y.shape[1], out[0], ratio, out[1] * ratio]
    rows_done = b.op("ReduceMax", b.reshape(best, shape), np.asarray([2], np.int64), keepdims=0)
    split = b.reshape(rows_done, [b.y.shape[0] * b.y.shape[1], out[0], out[1], ratio])
    b.output(b.reshape(b.op("ReduceMax", split, np.asarray([3], np.int64), keepdims=0), b.y.shape))


def _samples(b: Builder, axis: int, ratio: int) -> str:
    """[regions, bins * ratio]: where the samples lie along the rows (axis 0) or columns (1)."""
    regions, half = b.node.input[1], b.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    scale, bins = b.attribute("spatial_scale", 1.0), b.y.shape[2 + axis]
    corners = [b.op("Mul", b.take(regions, 1, k, k + 1), b.like(scale)) for k in (1 - axis, 3 - axis)]
    if half:
        corners = [b.op("Sub", corner, b.like(0.5)) for corner in corners]
    extent = b.op("Sub", corners[1], corners[0])
    if not half:
        extent = b.op("Max", extent, b.like(1.0))
    parts = (np.arange(bins * ratio, dtype=np.float32) + 0.5) / (bins * ratio)
    return b.op("Add", corners[0], b.op("Mul", extent, parts[None].astype(np.float32)))


def _clamped(b: Builder, places: str, axis: int) -> tuple[str, str]:
    """The places inside the image, and 1 or 0 for whether they count."""
    size = b.x.shape[2 + axis]
    far = b.op("Or", b.op("Less", places, b.like(-1.0)), b.op("Greater", places, b.like(float(size))))
    counts = b.op("Cast", b.op("Not", far), to=TensorProto.FLOAT)
    return b.op("Min", b.op("Max", places, b.like(0.0)), b.like(size - 1.0)), counts


def _mean_weights(b: Builder, places: str, axis: int, bins: int, ratio: int) -> str:
    """[regions, bins, size]"""
    size, regions = b.x.shape[2 + axis], b.y.shape[0]
    inside, counts = _clamped(b, places, axis)
    shape = [regions, bins * ratio, 1]
    distance = b.op("Abs", b.op("Sub", b.reshape(inside, shape), np.arange(size, dtype=np.float32)))
    weights = b.op("Mul", b.op("Max", b.op("Sub", b.like(1.0), distance), b.like(0.0)), b.reshape(counts, shape))
    return b.op("ReduceMean", b.reshape(weights, [regions, bins, ratio, size]), np.asarray([2], np.int64), keepdims=0)


def _end_weights(b: Builder, places: str, axis: int) -> list[str]:
    """[regions, samples, size] for the neighbour before and the one behind each sample."""
    size, shape = b.x.shape[2 + axis], [b.y.shape[0], -1, 1]
    inside, counts = _clamped(b, places, axis)
    low = b.op("Floor", inside)
    share = b.op("Sub", inside, low)
    high = b.op("Min", b.op("Add", low, b.like(1.0)), b.like(size - 1.0))
    found = []
    for place, weight in ((low, b.op("Sub", b.like(1.0), share)), (high, share)):
        same = b.op("Equal", b.reshape(place, shape), np.arange(size, dtype=np.float32))
        scaled = b.reshape(b.op("Mul", weight, counts), shape)
        found.append(b.op("Mul", b.op("Cast", same, to=TensorProto.FLOAT), scaled))
    return found


def _applied(b: Builder, rows: str, columns: str, image: str) -> str:
    """rows image columns^T, per region and channel."""
    one = np.asarray([1], np.int64)
    left = b.op("MatMul", b.op("Unsqueeze", rows, one), image)
    return b.op("MatMul", left, b.op("Unsqueeze", b.transpose(columns, [0, 2, 1]), one))


@decomposes("DeformConv")
def deform_conv(b: Builder) -> None:
    """The input sampled at every tap's moved place, then a convolution of size 1 over channels and taps.

    Source: ONNX's definition; offsets are [group, tap, (y, x)] along the channel axis, places outside are zero.
    """
    weight = b.operand(1)
    assert weight is not None
    if len(b.x.shape) != 4:
        raise Undecomposable("it is not two-dimensional")
    batch, channels = b.x.shape[:2]
    groups, taps, out = b.attribute("offset_group", 1), int(np.prod(weight.shape[2:])), b.y.shape[2:]
    each = channels // groups
    columns = []
    for group in range(groups):
        part = b.x.name if groups == 1 else b.take(b.x.name, 1, group * each, (group + 1) * each)
        sampler = Sampler(b, part, (batch, each, *b.x.shape[2:]), (taps, out[0] * out[1]), "zeros")
        sampled = sampler.weighted([linear_taps(b, place) for place in _moved_places(b, weight.shape[2:], group)])
        sampled = b.transpose(sampled, [0, 3, 1, 2])
        if b.operand(4) is not None:
            mask = b.take(b.node.input[4], 1, group * taps, (group + 1) * taps)
            sampled = b.op("Mul", sampled, b.reshape(mask, [batch, 1, taps, out[0] * out[1]]))
        columns.append(b.reshape(sampled, [batch, each * taps, *out]))
    whole = columns[0] if groups == 1 else b.op("Concat", *columns, axis=1)
    kernel = b.reshape(weight.name, [weight.shape[0], weight.shape[1] * taps, 1, 1])
    bias = [b.node.input[3]] if b.operand(3) is not None else []
    b.output(b.op("Conv", whole, kernel, *bias, group=b.attribute("group", 1), kernel_shape=[1, 1]))


def _moved_places(b: Builder, kernel: tuple[int, ...], group: int) -> list[str]:
    """Rows and columns in elements, each [batch, taps, rows * columns]."""
    taps, out, batch = kernel[0] * kernel[1], b.y.shape[2:], b.x.shape[0]
    strides, dilations = b.attribute("strides", None) or [1, 1], b.attribute("dilations", None) or [1, 1]
    pads = b.attribute("pads", None) or [0] * 4
    tap = np.indices(kernel).reshape(2, taps, 1, 1)
    place = np.indices(out)[:, None]
    offsets = b.take(b.node.input[2], 1, group * taps * 2, (group + 1) * taps * 2)
    offsets = b.reshape(offsets, [batch, taps, 2, out[0] * out[1]])
    found = []
    for axis in (0, 1):
        fixed = tap[axis] * dilations[axis] + place[axis] * strides[axis] - pads[axis]
        moved = b.reshape(b.take(offsets, 2, axis, axis + 1), [batch, taps, out[0] * out[1]])
        found.append(b.op("Add", moved, fixed.reshape(1, taps, -1).astype(np.float32)))
    return found


@decomposes("MaxUnpool")
def max_unpool(b: Builder) -> None:
    """Values scattered to the places that the pooling remembers, which count in the shape before ``output_shape`` enlarged it."""
    shape = _unpooled(b)
    places = b.op("Cast", b.reshape(b.node.input[1], [-1, 1]), to=TensorProto.INT64)
    empty = np.zeros(int(np.prod(shape)), b.x.dtype)
    result = b.reshape(b.op("ScatterND", empty, places, b.reshape(b.x.name, [-1])), shape)
    grown = [have - want for have, want in zip(b.y.shape, shape, strict=True)]
    if any(grown):
        result = b.op("Pad", result, np.asarray([0] * len(shape) + grown, np.int64), b.like(0))
    b.output(result)


def _unpooled(b: Builder) -> list[int]:
    kernel: Any = b.attribute("kernel_shape", None)
    spatial = len(kernel)
    strides, pads = b.attribute("strides", None) or [1] * spatial, b.attribute("pads", None) or [0] * 2 * spatial
    sizes = [(b.x.shape[2 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[i + spatial] for i in range(spatial)]
    if any(size > have for size, have in zip(sizes, b.y.shape[2:], strict=True)):
        raise Undecomposable("its output is smaller than what was pooled")
    return [*b.x.shape[:2], *sizes]
