"""Reading a picture between its pixels: resample, affine, crop_resize, and resize to a shape.

Source: coremltools MIL ops, iOS15, iOS16 and iOS17 image_resizing.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtimes.coreml_reference.ops.resizing import linear, nearest, positions
from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.coreml_reference.types import check_size
from runtimes.session import Array

# Where an index outside of 0 .. size - 1 is read instead.
_FOLDS: dict[str, Callable[[Array, int], Array]] = {
    "constant": lambda i, size: np.clip(i, 0, size - 1),  # and replaced by the padding value afterwards
    "border": lambda i, size: np.clip(i, 0, size - 1),
    "reflection": lambda i, size: _reflected(i, max(2 * (size - 1), 1), size - 1),
    "symmetric": lambda i, size: _reflected(np.where(i < 0, -1 - i, i), 2 * size, size - 0.5),
}


def _reflected(index: Array, period: int, middle: float) -> Array:
    """|1, 2, 3| -> |2, 3, 2, 1, 2, 3, 2, 1, 2| with middle 2, period 4."""
    wrapped = np.mod(np.abs(index), period)
    return np.asarray(np.where(wrapped > middle, 2 * middle - wrapped, wrapped).astype(np.int64))


def _pixels(values: Array, size: int, mode: str, align: bool) -> Array:
    """Coordinates along one axis, in pixels: 0 is the centre of the first one."""
    if mode == "unnormalized":
        return values
    if mode not in ("normalized_minus_one_to_one", "normalized_zero_to_one"):
        raise ValueError(f"coordinates_mode {mode!r} is not known")
    share = (values + 1) / 2 if mode == "normalized_minus_one_to_one" else values
    return share * (size - 1) if align else share * size - 0.5


@evaluates("resample")
def resample(call: Call) -> Array:
    """x [B, C, H, W] read at coordinates [B, H2, W2, 2], (x, y) each."""
    x, coordinates = call.wide("x"), call.wide("coordinates").astype(np.float64)
    if x.ndim != 4 or coordinates.ndim != 4 or coordinates.shape[0] != x.shape[0] or coordinates.shape[3] != 2:
        raise ValueError(f"x {list(x.shape)} and coordinates {list(coordinates.shape)} do not fit")
    mode, align = call.str("coordinates_mode"), call.bool("align_corners")
    across = _pixels(coordinates[..., 0], x.shape[3], mode, align)
    down = _pixels(coordinates[..., 1], x.shape[2], mode, align)
    return _read(x, down, across, call)


@evaluates("affine")
def affine(call: Call) -> Array:
    """Each output point (x, y) in [-1, 1] reads at (a0 x + a1 y + a2, b0 x + b1 y + b2)."""
    x, matrix = call.wide("x"), call.wide("transform_matrix").astype(np.float64)
    height, width = call.int("output_height"), call.int("output_width")
    check_size([x.shape[0], x.shape[1], height, width], 4)
    mode, align = call.str("coordinates_mode"), call.bool("align_corners")
    if mode != "normalized_minus_one_to_one" or not align or matrix.shape not in ((1, 6), (x.shape[0], 6)):
        raise ValueError(
            f"coordinates_mode {mode!r}, align_corners {align}, matrix {list(matrix.shape)} are not documented"
        )
    rows, columns = np.meshgrid(_ends(height), _ends(width), indexing="ij")
    a, b = (np.broadcast_to(matrix, (x.shape[0], 6))[:, part, None, None] for part in (slice(0, 3), slice(3, 6)))
    across, down = (m[:, 0] * columns + m[:, 1] * rows + m[:, 2] for m in (a, b))
    return _read(x, _pixels(down, x.shape[2], mode, align), _pixels(across, x.shape[3], mode, align), call)


def _ends(count: int) -> Array:
    return np.linspace(-1, 1, count) if count > 1 else np.array([-1.0])


def _read(x: Array, down: Array, across: Array, call: Call) -> Array:
    """x [B, C, H, W] at rows and columns [B, H2, W2], in pixels, to [B, C, H2, W2]."""
    sampling, padding = call.str("sampling_mode"), call.str("padding_mode")
    if padding not in _FOLDS or sampling not in ("bilinear", "nearest"):
        raise ValueError(f"sampling_mode {sampling!r} or padding_mode {padding!r} is not known")
    fill = call.float("padding_value", 0.0) if padding == "constant" else None
    if sampling == "nearest":
        return _corner(x, np.rint(down), np.rint(across), padding, fill)
    top, left = np.floor(down), np.floor(across)
    tall, wide = ((a - b).astype(np.float32)[:, None] for a, b in ((down, top), (across, left)))
    corners = [_corner(x, top + i, left + j, padding, fill) for i in (0, 1) for j in (0, 1)]
    upper = corners[0] * (1 - wide) + corners[1] * wide
    return np.asarray(upper * (1 - tall) + (corners[2] * (1 - wide) + corners[3] * wide) * tall)


def _corner(x: Array, rows: Array, columns: Array, padding: str, fill: float | None) -> Array:
    height, width = x.shape[2:]
    finite = np.nan_to_num(rows), np.nan_to_num(columns)
    i, j = (np.clip(a, -(2.0**31), 2.0**31).astype(np.int64) for a in finite)
    batch = np.arange(x.shape[0])[:, None, None]
    fold = _FOLDS[padding]
    found = np.moveaxis(x[batch, :, fold(i, height), fold(j, width)], -1, 1)
    if fill is None:
        return found
    outside = (i < 0) | (i >= height) | (j < 0) | (j >= width)
    return np.asarray(np.where(outside[:, None], np.float32(fill), found))


@evaluates("crop_resize")
def crop_resize(call: Call) -> Array:
    """Boxes cut out and resized linearly. ``roi`` [N, 1, 4 or 5, 1, 1] before iOS17, then ``boxes`` [N, 4] and ``box_indices``."""
    x, old = call.wide("x"), call.has("roi")
    boxes = call.wide("roi").reshape(call["roi"].shape[0], -1) if old else call.wide("boxes")
    boxes = boxes.astype(np.float64)
    named = boxes.shape[1] == 5
    images = boxes[:, 0].astype(np.int64) if named else np.arange(len(boxes))
    if not old and call.has("box_indices"):
        images = call["box_indices"].astype(np.int64)
    boxes = _corners(boxes[:, -4:], call, x.shape[2:])
    height, width = call.int("target_height", 1), call.int("target_width", 1)
    copies = x.shape[0] if old and not named else 1
    check_size([len(boxes), copies, x.shape[1], height, width], 4)
    mode, fill = call.str("sampling_mode", "DEFAULT"), call.float("pad_value", 0.0)
    if (old and not named) or not len(boxes):
        cuts = [_cut(x, box, height, width, mode, fill) for box in boxes]
    else:
        if images.min() < 0 or images.max() >= x.shape[0]:
            raise ValueError(f"boxes name images {images.min()} to {images.max()} of {x.shape[0]}")
        cuts = [_cut(x[i : i + 1], box, height, width, mode, fill) for i, box in zip(images, boxes, strict=True)]
    made = np.stack(cuts) if cuts else np.zeros((0, copies, x.shape[1], height, width), np.float32)
    return made if old else made[:, 0]


def _corners(boxes: Array, call: Call, size: tuple[int, ...]) -> Array:
    """[N, 4] as top, left, bottom, right in pixels."""
    mode = call.str("box_coordinate_mode", "CORNERS_HEIGHT_FIRST")
    kind, _, order = (
        mode.partition("_HEIGHT_FIRST") if mode.endswith("_HEIGHT_FIRST") else mode.partition("_WIDTH_FIRST")
    )
    if kind not in ("CORNERS", "CENTER_SIZE") or order:
        raise ValueError(f"box_coordinate_mode {mode!r} is not known")
    if mode.endswith("_WIDTH_FIRST"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if kind == "CENTER_SIZE":
        boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    if call.bool("normalized_coordinates"):
        boxes = boxes * np.tile(np.array(size, np.float64) - 1, 2)
    return np.asarray(boxes * call.float("spatial_scale", 1.0))


def _cut(x: Array, box: Array, height: int, width: int, mode: str, fill: float) -> Array:
    """x [B, C, H, W] to [B, C, height, width]; points beyond the picture are ``fill``."""
    top, left, bottom, right = (float(v) for v in box)
    rows = top + positions(mode, bottom - top + 1, height)
    columns = left + positions(mode, right - left + 1, width)
    lines = _along(_along(x, rows, 2), columns, 3)
    inside = np.ix_((rows >= 0) & (rows <= x.shape[2] - 1), (columns >= 0) & (columns <= x.shape[3] - 1))
    kept = np.zeros((height, width), bool)
    kept[inside] = True
    return np.asarray(np.where(kept, lines, np.float32(fill)))


def _along(x: Array, points: Array, axis: int) -> Array:
    """Linear interpolation at ``points`` of one axis, held at its ends."""
    held = np.clip(points, 0, x.shape[axis] - 1)
    low = np.floor(held).astype(np.int64)
    share = (held - low).astype(np.float32).reshape((-1,) + (1,) * (x.ndim - 1 - axis))
    lower, upper = (np.take(x, np.minimum(i, x.shape[axis] - 1), axis=axis) for i in (low, low + 1))
    return np.asarray(lower + (upper - lower) * share)


@evaluates("resize")
def resize(call: Call) -> Array:
    """The last ``resized_dims`` dimensions to those of ``shape``; 0 keeps a dimension."""
    x, count = call.wide("x"), call.int("resized_dims")
    wanted = call.ints("shape")[-count:] if count else []
    if count > min(x.ndim, len(call.ints("shape"))) or min(wanted, default=0) < 0:
        raise ValueError(f"shape {wanted} with {count} resized dimensions does not fit {list(x.shape)}")
    interpolation, mode = call.str("interpolation_mode", "LINEAR"), call.str("sampling_mode", "DEFAULT")
    if interpolation not in ("LINEAR", "NEAREST_NEIGHBOR") or (interpolation != "LINEAR" and mode != "DEFAULT"):
        raise ValueError(f"{interpolation!r} with sampling mode {mode!r} is not documented")
    for axis, size in enumerate(wanted, x.ndim - count):
        if size:
            check_size([*x.shape[:axis], size, *x.shape[axis + 1 :]], 4)
            x = linear(x, axis - x.ndim, size, mode) if interpolation == "LINEAR" else nearest(x, axis, size)
    return x
