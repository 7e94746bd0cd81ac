"""Contexts: which statistics a residual is coded with, known to both sides before the residual is.

The patch gives every segment, or every channel of one, a class: how large its residuals are, in half octaves. From it follow

    floats            clamp(class - 2 * exponent of the base's element, 0, 63)     the size in units in the last place
    wider integers    min(class, 63)
    bytes             4 * min(class, 15) + min(|base's element| >> 5, 3)           a changed scale moves large values further
    rescaled bytes    64 + 4 * min(class, 15) + min(floor(8 * |fraction|), 3)      what rounding the prediction took away

One context thus means one expected size, whichever tensor, channel or exponent it comes from: few tables serve all of them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta.format import ORDERED, Kind

SIZES: Final = 64  # contexts of words, two for each octave
BYTE_CLASSES: Final = 16
RESCALED: Final = 64
# Exponents by kind: shift, mask, and the lowest: float32's weights below 2^-66 share an exponent.
EXPONENTS: Final = {Kind.ORDERED16: (10, 31, 0), Kind.BRAIN16: (7, 255, 61), Kind.ORDERED32: (23, 255, 61)}

Words = NDArray[np.unsignedinteger[Any]]
Classes = NDArray[np.uint8]
Known = NDArray[Any]  # Words, or float32


def exponents(base: Words, kind: Kind) -> NDArray[np.int16]:
    """[n] exponents of float bits, from 0 on."""
    shift, mask, lowest = EXPONENTS[kind]
    raw = ((base >> base.dtype.type(shift)) & base.dtype.type(mask)).astype(np.int16)
    found: NDArray[np.int16] = np.maximum(raw - np.int16(lowest), np.int16(0))
    return found


def contexts(known: Known, kind: Kind, classes: Classes) -> Classes:
    """[n] contexts below CONTEXTS. ``classes``: [n], or [1] for all.

    ``known``: [n] words of the base, or what rounding took away from predicted bytes, from -0.5 to 0.5.
    """
    if known.dtype == np.float32:
        return _rescaled(known, classes)
    if kind in ORDERED:
        wide = classes.astype(np.int16) - 2 * exponents(known, kind)
        np.minimum(np.maximum(wide, 0, wide), SIZES - 1, wide)
        return wide.astype(np.uint8)
    if kind is Kind.DIFF8:
        # The magnitude of -128 is 128 as an unsigned byte: the only one to give 4.
        return _at_most_three(np.abs(known.view(np.int8)).view(np.uint8) >> np.uint8(5)) + _coarse(classes)
    return np.broadcast_to(np.minimum(classes, SIZES - 1), known.shape)


def _rescaled(fraction: NDArray[np.float32], classes: Classes) -> Classes:
    part = np.abs(fraction)
    part *= np.float32(8)
    return _at_most_three(part.astype(np.uint8)) + (_coarse(classes) + np.uint8(RESCALED))


def _coarse(classes: Classes) -> Classes:
    found: Classes = 4 * np.minimum(classes, BYTE_CLASSES - 1)
    return found


def _at_most_three(part: Classes) -> Classes:
    """min(part, 3) of [n] numbers from 0 to 4: numpy's minimum of bytes costs eight times as much."""
    return part - (part >> np.uint8(2))
