"""Numbers: from ranges and weights to scales and zero points. Everything is float32 at the end, as every target stores it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from compiler.quantization.spec import QParams
from profiles.registry import Registry
from runtimes.session import Array

INT8_LEVELS: Final = 255  # steps between -128 and 127
NARROW_MAX: Final = 127
INT16_MAX: Final = 32767
# |bias code| stays below this, which leaves int32 accumulators as much again for the products.
BIAS_LIMIT: Final = float(2**30)
# Scales below these mean "nothing but zero"; above them the product of two stays a normal float32 (more than 1.2e-38).
SMALLEST_ACTIVATION_SCALE: Final = 1e-20
SMALLEST_WEIGHT_SCALE: Final = 1e-16
# A channel whose weights are this much smaller than the tensor's largest contributes nothing to an 8-bit output; its scale
# is held up, so that the multipliers of integer kernels stay within their 31-bit shifts.
SMALLEST_SHARE: Final = 2.0**-24

# From rows [channels, rest] and their max-abs scales [channels] to the scales to use, [channels]; all float64.
WeightMethod = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
WEIGHT_METHODS: Registry[WeightMethod] = Registry(
    "weight method", how_to_add="Add a function that follows WeightMethod to compiler/quantization/params.py."
)


def activation_params(low: float, high: float, dtype: str = "int8") -> QParams:
    """Parameters that cover [low, high], widened to contain zero exactly: affine in int8, symmetric in int16.

    scale = (high - low) / 255; zero_point = clip(rint(-128 - low / scale), -128, 127), ties to even.
    After ReLU (low = 0) the zero point is -128, which lets runtimes drop the ReLU.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if dtype == "int16":
        wide = np.float32(max(-low, high) / INT16_MAX)
        return QParams(dtype, np.array([wide if wide >= SMALLEST_ACTIVATION_SCALE else 1.0 / INT16_MAX], np.float32))
    scale = np.float32((high - low) / INT8_LEVELS)
    if scale < SMALLEST_ACTIVATION_SCALE:  # nothing but zero was ever seen
        scale = np.float32(1.0 / INT8_LEVELS)
    zero_point = int(np.clip(np.rint(-128.0 - low / np.float64(scale)), -128, 127))
    return QParams("int8", np.array([scale], np.float32), zero_point)


def weight_params(weight: Array, axis: int | None, method: str = "max-abs") -> QParams:
    """int8 symmetric narrow parameters of ``weight``, per slice of ``axis`` or per tensor.

    Args:
        weight: any shape, float32.
        axis: the output-channel axis, or None.
        method: a name in WEIGHT_METHODS: "max-abs" (scale = max|w| / 127), "mse" (the share of it with the least squared
            rounding error), "neural-compressor".

    Raises:
        RegistryMiss: unknown method.
        ExtraMissing: the method's package is not installed.
    """
    rows = _rows(weight, axis)
    peak = np.abs(rows).max(axis=1, initial=0.0)
    largest = peak.max(initial=0.0) or 1.0
    # An all-zero channel has no scale of its own; the tensor's keeps its bias as fine as its neighbours'.
    scale = np.maximum(np.where(peak > 0, peak, largest), largest * SMALLEST_SHARE) / NARROW_MAX
    scale = np.maximum(scale, SMALLEST_WEIGHT_SCALE)
    chosen = WEIGHT_METHODS.get(method)(rows, scale)
    scale = np.where(peak > largest * SMALLEST_SHARE, chosen, scale)
    return QParams("int8", scale.astype(np.float32), axis=axis, narrow=True)


def _rows(weight: Array, axis: int | None) -> NDArray[np.float64]:
    """[channels, rest] float64."""
    wide = weight.astype(np.float64)
    return wide.reshape(1, -1) if axis is None else np.moveaxis(wide, axis, 0).reshape(wide.shape[axis], -1)


def _max_abs(rows: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return scale


def _least_squares(rows: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per row the share of ``scale`` between 1 and 0.6 with the least sum((w - q * s)**2); ties keep the larger scale."""
    best, best_error = scale, np.full(len(rows), np.inf)
    for share in np.linspace(1.0, 0.6, 41):
        candidate = scale * share
        codes = np.clip(np.rint(rows / candidate[:, None]), -NARROW_MAX, NARROW_MAX)
        error = ((codes * candidate[:, None] - rows) ** 2).sum(axis=1)
        better = error < best_error
        best, best_error = np.where(better, candidate, best), np.where(better, error, best_error)
    return best


def constant_params(values: Array, dtype: str = "int8") -> QParams:
    """Parameters of a constant operand of an element-wise operator, per tensor, as of an activation."""
    return activation_params(float(values.min(initial=0.0)), float(values.max(initial=0.0)), dtype)


def make_room_for_bias(bias: Array, scale_in: float, weight: QParams) -> tuple[QParams, list[int]]:
    """Raise weight scales of channels whose bias would not fit int32 at scale_in * scale_weight.

    Args:
        bias: [channels] float32.
        scale_in: the input's scale.
        weight: parameters per channel ([channels] scales) or per tensor.

    Returns:
        The weight's parameters, and the channels whose scale was raised (channel 0 stands for the tensor).
    """
    needed = np.abs(bias.astype(np.float64)) / (scale_in * BIAS_LIMIT)
    if weight.axis is None:
        needed = needed.max(keepdims=True, initial=0.0)
    short = needed > weight.scale
    if not short.any():
        return weight, []
    # The next float32 up, so that rounding cannot bring the code above the limit again.
    raised = np.nextafter(needed.astype(np.float32), np.float32(np.inf))
    scale = np.where(short, raised, weight.scale)
    return QParams("int8", scale, axis=weight.axis, narrow=True), [int(c) for c in np.flatnonzero(short)]


def bias_params(scale_in: float, weight: QParams) -> QParams:
    """int32 parameters with scale = scale_in * scale_weight, multiplied in float32 as every kernel does."""
    scale = np.float32(scale_in) * weight.scale
    return QParams("int32", scale, axis=None if weight.axis is None else 0)


WEIGHT_METHODS.add("max-abs", _max_abs)
WEIGHT_METHODS.add("mse", _least_squares)
WEIGHT_METHODS.add_lazy("neural-compressor", "compiler.quantization.neural_compressor", "choose_scales")
