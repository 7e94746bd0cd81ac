"""Resize as one matrix per axis, GridSample as gathers of the neighbouring pixels."""

from __future__ import annotations

import itertools

import numpy as np

from compiler.decompose.builder import Array, Builder
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("Resize", "Upsample")
def resize(b: Builder) -> None:
    """y = M_k x along every resized axis k; nearest is a gather.

    Source: ONNX's definition of Resize; its formulas per coordinate_transformation_mode are in ``_coordinates``.
    """
    rank = len(b.x.shape)
    axes = [axis % rank for axis in b.attribute("axes", None) or range(rank)]
    scales = _scales(b, axes)
    roi = _roi(b, axes)
    result, outside = b.x.name, []
    for axis in axes:
        size, out = b.x.shape[axis], b.y.shape[axis]
        crop = b.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        if size == out and scales[axis] == 1.0 and not crop:
            continue
        places = _coordinates(b, size, out, scales[axis], roi[axis])
        if crop:
            outside.append((axis, (places < 0) | (places > size - 1)))
        if b.attribute("mode", "nearest") == "nearest":
            result = b.op("Gather", result, _nearest(b, places, size), axis=axis)
        else:
            result = _along(b, result, rank, axis, _matrix(b, places, size, scales[axis]))
    b.output(_extrapolated(b, result, rank, outside))


def _scales(b: Builder, axes: list[int]) -> dict[int, float]:
    given = b.operand(1 if b.node.op_type == "Upsample" else 2)
    if given is not None and given.constant is None:
        raise Undecomposable("its scales are computed at run time")
    if given is not None and given.constant is not None and given.constant.size:
        return dict(zip(axes, map(float, given.constant), strict=True))
    if b.attribute("keep_aspect_ratio_policy", "stretch") == "stretch":
        return {axis: b.y.shape[axis] / b.x.shape[axis] for axis in axes}
    sizes = b.operand(3)
    if sizes is None or sizes.constant is None:
        raise Undecomposable("its sizes are computed at run time")
    ratios = [int(size) / b.x.shape[axis] for size, axis in zip(sizes.constant, axes, strict=True)]
    choose = min if b.attribute("keep_aspect_ratio_policy", "") == "not_larger" else max
    return dict.fromkeys(axes, float(choose(ratios)))


def _roi(b: Builder, axes: list[int]) -> dict[int, tuple[float, float]]:
    given = b.operand(1) if b.node.op_type == "Resize" else None
    crop = b.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if given is None or not crop:
        return dict.fromkeys(axes, (0.0, 1.0))
    if given.constant is None:
        raise Undecomposable("its region is computed at run time")
    starts, ends = np.split(given.constant, 2)
    return {axis: (float(s), float(e)) for axis, s, e in zip(axes, starts, ends, strict=True)}


def _coordinates(b: Builder, size: int, out: int, scale: float, roi: tuple[float, float]) -> Array:
    """Where each output element lies in the input, in elements."""
    mode = b.attribute("coordinate_transformation_mode", "half_pixel")
    if b.node.op_type == "Upsample":
        mode = "asymmetric"
    x = np.arange(out, dtype=np.float64)
    if mode == "align_corners":
        length = size * scale
        return x * (size - 1) / (length - 1) if length != 1 else np.zeros(out)
    if mode == "asymmetric":
        return x / scale
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if size * scale > 1 else np.zeros(out)
    if mode == "half_pixel_symmetric":
        length = size * scale
        adjustment = out / length
        return size / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        start, end = roi
        if out > 1:
            return start * (size - 1) + x * (end - start) * (size - 1) / (out - 1)
        return np.full(out, 0.5 * (start + end) * (size - 1))
    return (x + 0.5) / scale - 0.5


def _nearest(b: Builder, places: Array, size: int) -> Array:
    mode = b.attribute("nearest_mode", "round_prefer_floor")
    if b.node.op_type == "Upsample":
        mode = "floor"
    if mode == "round_prefer_floor":
        rounded = np.ceil(places - 0.5)
    elif mode == "round_prefer_ceil":
        rounded = np.floor(places + 0.5)
    else:
        rounded = np.floor(places) if mode == "floor" else np.ceil(places)
    inside: Array = np.clip(rounded, 0, size - 1).astype(np.int64)
    return inside


def _matrix(b: Builder, places: Array, size: int, scale: float) -> Array:
    """[out, in] weights; neighbours outside the input count for its edge, or not at all with exclude_outside."""
    cubic = b.attribute("mode", "nearest") == "cubic"
    stretch = max(1.0, 1 / scale) if b.attribute("antialias", 0) else 1.0
    reach = (2 if cubic else 1) * stretch
    matrix = np.zeros((len(places), size))
    exclude = b.attribute("exclude_outside", 0)
    for row, place in enumerate(places):
        taps = np.arange(int(np.ceil(place - reach)), int(np.floor(place + reach)) + 1)
        distance = (taps - place) / stretch
        weights = (
            _cubic(distance, b.attribute("cubic_coeff_a", -0.75)) if cubic else np.maximum(0, 1 - np.abs(distance))
        )
        if exclude:
            weights = np.where((taps >= 0) & (taps < size), weights, 0.0)
        if exclude or stretch > 1:
            weights = weights / weights.sum()
        np.add.at(matrix[row], np.clip(taps, 0, size - 1), weights)
    return matrix.astype(np.float32)


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel (1981)."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _along(b: Builder, name: str, rank: int, axis: int, matrix: Array) -> str:
    order = [i for i in range(rank) if i != axis] + [axis]
    product = b.op("MatMul", b.transpose(name, order), np.ascontiguousarray(matrix.T))
    return b.transpose(product, [order.index(i) for i in range(rank)])


def _extrapolated(b: Builder, name: str, rank: int, outside: list[tuple[int, Array]]) -> str:
    mask = np.zeros([1] * rank, np.bool_)
    for axis, places in outside:
        mask = mask | places.reshape([-1 if i == axis else 1 for i in range(rank)])
    return b.op("Where", mask, b.like(b.attribute("extrapolation_value", 0.0)), name) if mask.any() else name


@decomposes("GridSample")
def grid_sample(b: Builder) -> None:
    """Weighted sums of gathered pixels; the grid's last axis holds coordinates from the innermost axis outwards.

    Source: ONNX's definition (opset 20), and its reference for the order of clamping and rounding.
    """
    grid = b.operand(1)
    assert grid is not None
    dims = b.x.shape[2:]
    mode = b.attribute("mode", "linear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    rank = len(dims)
    out = grid.shape[1:-1]
    sampler = Sampler(
        b, b.x.name, b.x.shape, out, b.attribute("padding_mode", "zeros"), bool(b.attribute("align_corners", 0))
    )
    coordinates = [
        sampler.denormalized(b.reshape(b.take(grid.name, rank + 1, rank - 1 - k, rank - k), [b.x.shape[0], *out]), k)
        for k in range(rank)
    ]
    if mode == "nearest":
        result = sampler.pixels([b.op("Round", c) for c in coordinates], integral=True)
    else:
        taps = [linear_taps(b, c) if mode == "linear" else _cubic_taps(b, c) for c in coordinates]
        result = sampler.weighted(taps)
    b.output(b.transpose(result, [0, rank + 1, *range(1, rank + 1)]))


def linear_taps(b: Builder, place: str) -> list[tuple[str, str]]:
    low = b.op("Floor", place)
    share = b.op("Sub", place, low)
    return [(low, b.op("Sub", b.like(1.0), share)), (b.op("Add", low, b.like(1.0)), share)]


def _cubic_taps(b: Builder, place: str) -> list[tuple[str, str]]:
    a = -0.75
    low = b.op("Floor", place)
    t = b.op("Sub", place, low)
    taps = []
    for offset in (-1, 0, 1, 2):
        x = b.op("Abs", b.op("Sub", t, b.like(float(offset))))
        if offset in (0, 1):
            poly = b.op("Sub", b.op("Mul", x, b.like(a + 2)), b.like(a + 3))
            weight = b.op("Add", b.op("Mul", b.op("Mul", poly, x), x), b.like(1.0))
        else:
            poly = b.op("Sub", b.op("Mul", x, b.like(a)), b.like(5 * a))
            poly = b.op("Add", b.op("Mul", poly, x), b.like(8 * a))
            weight = b.op("Sub", b.op("Mul", poly, x), b.like(4 * a))
        taps.append((b.op("Add", low, b.like(float(offset))), weight))
    return taps


class Sampler:
    """Reads pixels of an input at computed integer places, as the padding mode says.

    Args:
        source: name of the input, ``shape`` its [batch, channels, ...].
        out: sizes of the places' tensors behind the batch.
        padding: "zeros", "border" or "reflection", the last with or without ``align``ed corners.
    """

    def __init__(
        self, b: Builder, source: str, shape: tuple[int, ...], out: tuple[int, ...], padding: str, align: bool = False
    ) -> None:
        self.b, self.dims, self.padding, self.align = b, shape[2:], padding, align
        self.places = [shape[0], *out]
        rank, pixels = len(self.dims), int(np.prod(self.dims))
        last = b.transpose(source, [0, *range(2, rank + 2), 1])
        self.rows = b.reshape(last, [shape[0] * pixels, shape[1]])
        self.first = (np.arange(shape[0]) * pixels).astype(np.float32)
        if shape[0] * pixels >= 2**24:
            raise Undecomposable("float32 cannot count its pixels")

    def denormalized(self, place: str, axis: int) -> str:
        """-1..1 to elements: pixel centres lie at the ends with align_corners, half an element inside without."""
        b, size = self.b, self.dims[axis]
        if self.align:
            return b.op("Mul", b.op("Add", place, b.like(1.0)), b.like((size - 1) / 2))
        scaled = b.op("Mul", b.op("Add", place, b.like(1.0)), b.like(size / 2))
        return b.op("Sub", scaled, b.like(0.5))

    def _inside(self, place: str, axis: int) -> str:
        """The place, brought into the input."""
        b, size = self.b, self.dims[axis]
        if self.padding == "reflection":
            low, high = (0.0, size - 1.0) if self.align else (-0.5, size - 0.5)
            place = self._reflected(place, low, high) if high > low else b.op("Mul", place, b.like(0.0))
        return b.op("Min", b.op("Max", place, b.like(0.0)), b.like(size - 1.0))

    def _reflected(self, place: str, low: float, high: float) -> str:
        b, span = self.b, high - low
        away = b.op("Abs", b.op("Sub", place, b.like(low)))
        turns = b.op("Floor", b.op("Div", away, b.like(span)))
        rest = b.op("Sub", away, b.op("Mul", turns, b.like(span)))
        odd = b.op("Sub", turns, b.op("Mul", b.op("Floor", b.op("Mul", turns, b.like(0.5))), b.like(2.0)))
        there = b.op("Sub", b.like(high), rest)
        return b.op("Where", b.op("Greater", odd, b.like(0.5)), there, b.op("Add", rest, b.like(low)))

    def pixels(self, places: list[str], *, integral: bool = False) -> str:
        """[batch, out..., channels] at integer places, one value per axis."""
        b = self.b
        rank = len(places)
        index = b.constant(self.first.reshape([-1, *([1] * rank)]))
        valid: str | None = None
        for axis, place in enumerate(places):
            inside = self._inside(place, axis)
            if self.padding == "zeros":
                same = b.op("Equal", inside, place)
                valid = same if valid is None else b.op("And", valid, same)
            stride = float(np.prod(self.dims[axis + 1 :], dtype=np.int64))
            index = b.op("Add", index, b.op("Mul", b.op("Floor", b.op("Add", inside, b.like(0.5))), b.like(stride)))
        values = b.op("Gather", self.rows, b.op("Cast", index, to=6), axis=0)
        if valid is None:
            return values
        return b.op("Where", b.reshape(valid, [*self.places, 1]), values, b.like(0.0))

    def weighted(self, taps: list[list[tuple[str, str]]]) -> str:
        """Sums over all combinations of one (place, weight) per axis."""
        b = self.b
        total: str | None = None
        for chosen in itertools.product(*taps):
            weight = chosen[0][1]
            for _, other in chosen[1:]:
                weight = b.op("Mul", weight, other)
            term = b.op("Mul", self.pixels([place for place, _ in chosen]), b.reshape(weight, [*self.places, 1]))
            total = term if total is None else b.op("Add", total, term)
        assert total is not None
        return total
