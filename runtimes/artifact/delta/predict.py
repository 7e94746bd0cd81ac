"""Predictions: what residuals are added to. Integer arithmetic and single IEEE operations only: the same on every machine.

    RESCALE   p = base * ratio, ratio = old scale / new scale of the element's channel; the prediction is rint(p), clipped to the
              type. int8: ratio in float64, rounded to float32, the product in float32; int32: all in float64.
              Residuals are mirrored where p was rounded up, so that they lean one way.
    PRODUCT   scale of the channel * scalar, one float32 product
    RATIO     base * (1 + k / 8192), k a signed 16-bit number per channel, one float32 product, rounded to the type;
              elements whose exponent is extreme stay as they are (flushed subnormals, NaN payloads)

A ratio that is not finite (a scale of zero) counts as 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta.contexts import Known, Words
from runtimes.artifact.delta.format import Kind

RATIO_ONE: Final = 8192
_EXTREME: Final = 32  # float32 exponent fields below, and 255, are left alone

PerChannel = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """``words``: [n] predicted elements. ``known``: [n], what their contexts follow from (contexts.py).

    ``mirrored``: [n] where the residual's sign is turned round.
    """

    words: Words
    known: Known
    mirrored: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Element i belongs to channel (i // inner) % channels."""

    channels: int
    inner: int

    def spread(self, values: PerChannel, start: int, count: int) -> PerChannel:
        """[channels] values as [count] elements from element ``start`` on; [1] where one value serves them all."""
        if len(values) == 1:
            return values
        first, last = start // self.inner, (start + count - 1) // self.inner
        rows: PerChannel = values[np.arange(first, last + 1) % self.channels]
        if self.inner == 1 or len(rows) == 1:
            return rows
        if self.inner > count:
            edges = np.clip(np.arange(first, last + 2) * self.inner, start, start + count)
            return np.repeat(rows, np.diff(edges))
        begin = start - first * self.inner
        return np.repeat(rows, self.inner)[begin : begin + count]


def ratios_of(old: NDArray[np.float32], new: NDArray[np.float32], kind: Kind) -> PerChannel:
    """[channels] factors of RESCALE."""
    with np.errstate(all="ignore"):
        ratio = old.astype(np.float64) / new.astype(np.float64)
        if kind is Kind.DIFF8:
            ratio = ratio.astype(np.float32)
    return np.where(np.isfinite(ratio), ratio, ratio.dtype.type(1))


def plain(base: Words) -> Prediction:
    return Prediction(base, base)


def rescaled(base: Words, kind: Kind, ratio: PerChannel) -> Prediction:
    """``ratio``: [n], or [1] for all."""
    signed = base.view(f"<i{base.itemsize}")
    limits = np.iinfo(signed.dtype)
    with np.errstate(over="ignore"):
        exact = signed * ratio if kind is Kind.DIFF32 else signed.astype(np.float32) * ratio
    clipped = np.minimum(np.maximum(exact, exact.dtype.type(limits.min), exact), exact.dtype.type(limits.max), exact)
    whole = np.rint(clipped)
    words = whole.astype(signed.dtype).view(base.dtype)
    fraction = clipped - whole
    return Prediction(words, words if kind is Kind.DIFF32 else fraction, fraction < 0)


def product(scales: NDArray[np.float32], scalar: NDArray[np.float32]) -> Prediction:
    """``scales``: [n]; ``scalar``: [1]."""
    with np.errstate(all="ignore"):
        words = (scales * scalar).astype("<f4").view("<u4")
    return Prediction(words, words)


def ratioed(base: Words, kind: Kind, steps: NDArray[np.int16]) -> Prediction:
    """``steps``: [n] or [1], the k above."""
    ratio = np.float32(1) + steps.astype(np.float32) / np.float32(RATIO_ONE)
    with np.errstate(all="ignore"):
        if kind is Kind.ORDERED16:
            moved: Words = (base.view("<f2").astype(np.float32) * ratio).astype("<f2").view("<u2")
            extreme = (base & np.uint16(0x7C00)) == 0x7C00
        else:
            moved = (base.view("<f4") * ratio).astype("<f4", copy=False).view("<u4")
            exponent = (base >> np.uint32(23)) & np.uint32(255)
            extreme = (exponent < _EXTREME) | (exponent == 255)
    return Prediction(np.where(extreme, base, moved).astype(base.dtype, copy=False), base)
