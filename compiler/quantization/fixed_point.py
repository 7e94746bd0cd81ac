"""Integer arithmetic of LiteRT's kernels as functions, where the quantizer chooses scales under which it is exact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.quantization.spec import QParams

Codes = NDArray[np.int64]
HIGH_RESOLUTION = 128  # the kernel works on steps of 1/128


def hard_swish(source: QParams, result: QParams) -> Codes:
    """What the builtin HARD_SWISH answers for each of the 256 int8 codes, lowest first.

    Source: LiteRT kernels, activations.cc HardSwishPrepare and internal/reference/hard_swish.h HardSwish (16-bit products).
    """
    step = np.float32(np.float32(1 / HIGH_RESOLUTION) * source.scale[0])
    out_factor, out_exponent = _multiplier(float(np.float32(step / result.scale[0])))
    gate_factor, gate_exponent = _multiplier(float(np.float32(step / np.float32(3 / 32768))))
    x = (np.arange(source.qmin, source.qmax + 1) - source.zero_point) * HIGH_RESOLUTION
    gate = _clip16(x << max(gate_exponent - 1, 0))
    gate = _rounded_high(gate, gate_factor)
    gate = _clip16(gate << 1) if gate_exponent > 0 else _rounded_shift(gate, -gate_exponent)
    gate = (gate + (1 << 15)) >> 1
    product = _clip16(_toward_zero(gate * _rounded_high(x, out_factor)))
    codes: Codes = np.clip(_rounded_shift(product, -out_exponent) + result.zero_point, result.qmin, result.qmax)
    return codes


def _multiplier(real: float) -> tuple[int, int]:
    """``real`` as a 16-bit fraction of [0.5, 1) and an exponent of two, by way of the 32-bit one."""
    fraction, exponent = math.frexp(real)
    wide = round(fraction * (1 << 31))
    if wide == 1 << 31:
        wide, exponent = wide // 2, exponent + 1
    return min((wide + (1 << 15)) >> 16, 32767), exponent


def _clip16(values: NDArray[Any]) -> Codes:
    clipped: Codes = np.clip(values, -32768, 32767).astype(np.int64)
    return clipped


def _toward_zero(products: NDArray[Any]) -> Codes:
    shifted: Codes = np.sign(products) * (np.abs(products) >> 15)
    return shifted


def _rounded_high(values: Codes, factor: int) -> Codes:
    """SaturatingRoundingDoublingHighMul: value * factor / 2^15, halves away from zero but for negative ones."""
    products = values * factor
    return _clip16(_toward_zero(products + np.where(products >= 0, 1 << 14, 1 - (1 << 14))))


def _rounded_shift(values: Codes, exponent: int) -> Codes:
    """RoundingDivideByPOT: value / 2^exponent, halves away from zero."""
    if exponent <= 0:
        return values
    mask = (1 << exponent) - 1
    rest = values & mask
    shifted: Codes = (values >> exponent) + (rest > (mask >> 1) + (values < 0))
    return shifted
