"""Resizing of the last two dimensions. Source: coremltools MIL ops, iOS15 and iOS17 image_resizing.py."""

from __future__ import annotations

import math

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.coreml_reference.types import check_size
from runtimes.session import Array


def grid(mode: str, size: int, wanted: int) -> Array:
    """``positions``, held within the axis."""
    return np.clip(positions(mode, size, wanted), 0, size - 1)


def positions(mode: str, size: float, wanted: int) -> Array:
    """Where output positions fall on an input axis of ``size``, float64 [wanted], by the documented formula of each mode.

    Raises:
        ValueError: ``mode`` is unknown.
    """
    i = np.arange(wanted, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if wanted == 1:
            points = i + ((size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0)
        else:
            points = i * ((size - 1) / (wanted - 1))
    elif mode == "DEFAULT":
        # (size - size/wanted) / (wanted - 1) is size / wanted, written so that one output element needs no division by 0.
        points = i * (size / wanted)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / wanted
        points = 0.5 * delta + i * delta
    elif mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * (size / wanted) - 0.5
    else:
        raise ValueError(f"sampling mode {mode!r} is not known")
    return points


def linear(x: Array, axis: int, wanted: int, mode: str) -> Array:
    """Linear interpolation along one axis, float32."""
    points = grid(mode, x.shape[axis], wanted)
    low = np.floor(points).astype(np.int64)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    share = (points - low).astype(np.float32).reshape((-1,) + (1,) * (x.ndim - 1 - axis % x.ndim))
    lower, upper = np.take(x, low, axis=axis), np.take(x, high, axis=axis)
    return np.asarray(lower + (upper - lower) * share)


def nearest(x: Array, axis: int, wanted: int) -> Array:
    """Output i takes input floor(i * size / wanted), as TensorFlow and PyTorch do without half pixel centres."""
    index = (np.arange(wanted, dtype=np.int64) * x.shape[axis]) // wanted
    return np.asarray(np.take(x, index, axis=axis))


def _target(x: Array, height: int, width: int) -> tuple[int, int]:
    if x.ndim < 3 or height < 1 or width < 1:
        raise ValueError(f"x {list(x.shape)} cannot be resized to {height} x {width}")
    check_size([*x.shape[:-2], height, width], 4)
    return height, width


def _scaled(call: Call, x: Array) -> tuple[int, int]:
    """floor(size * factor)"""
    height = math.floor(x.shape[-2] * call.float("scale_factor_height", 1))
    width = math.floor(x.shape[-1] * call.float("scale_factor_width", 1))
    return _target(x, height, width)


@evaluates("upsample_nearest_neighbor")
def upsample_nearest_neighbor(call: Call) -> Array:
    x = call["x"]
    height, width = _scaled(call, x)
    return nearest(nearest(x, -2, height), -1, width)


@evaluates("resize_nearest_neighbor")
def resize_nearest_neighbor(call: Call) -> Array:
    x = call["x"]
    height, width = _target(x, call.int("target_size_height"), call.int("target_size_width"))
    return nearest(nearest(x, -2, height), -1, width)


@evaluates("upsample_bilinear")
def upsample_bilinear(call: Call) -> Array:
    """``align_corners`` False samples at half pixel centres; the factor is recomputed from the sizes."""
    x = call.wide("x")
    height, width = _scaled(call, x)
    if call.bool("align_corners", True):
        mode = "STRICT_ALIGN_CORNERS"
    else:
        # iOS16 adds half_pixel_centers, by default the opposite of align_corners.
        mode = "UNALIGN_CORNERS" if call.bool("half_pixel_centers", True) else "DEFAULT"
    return linear(linear(x, -2, height, mode), -1, width, mode)


@evaluates("resize_bilinear")
def resize_bilinear(call: Call) -> Array:
    x, mode = call.wide("x"), call.str("sampling_mode", "DEFAULT")
    height, width = _target(x, call.int("target_size_height", 1), call.int("target_size_width", 1))
    return linear(linear(x, -2, height, mode), -1, width, mode)


@evaluates("crop")
def crop(call: Call) -> Array:
    """Remove (before, after) elements of the last two dimensions."""
    x, (top, bottom), (left, right) = call["x"], call.ints("crop_height"), call.ints("crop_width")
    if min(top, bottom, left, right) < 0 or top + bottom >= x.shape[-2] or left + right >= x.shape[-1]:
        raise ValueError(f"cropping {[top, bottom]}, {[left, right]} leaves nothing of {list(x.shape)}")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
