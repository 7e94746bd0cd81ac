"""Contexts: which statistics a residual is coded with, known to both sides from the base alone.

    context = 32 * min(index of the segment among those of its kind, 255) + class of the base's element

The class is the exponent for floats (a step of a training run is so many units in the last place of weights with one exponent),
the upper five bits for bytes (a changed scale moves large values further), 0 for wider integers.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CLASSES: Final = 32
MAX_SEGMENT_INDEX: Final = 255
CONTEXTS: Final = CLASSES * (MAX_SEGMENT_INDEX + 1)
_EXPONENT_FLOOR: Final = 103  # float32: 2^-24 and below share class 0, 2^7 and above class 31


def contexts(base: NDArray[np.unsignedinteger[Any]], index: int, *, floats: bool) -> NDArray[np.uint16]:
    """``base``: [n] words of 1, 2 or 4 bytes. Returns [n] contexts below CONTEXTS."""
    first = CLASSES * min(index, MAX_SEGMENT_INDEX)
    if base.itemsize == 1:
        return (base >> np.uint8(3)).astype(np.uint16) + np.uint16(first)
    if not floats:
        return np.full(len(base), first, np.uint16)
    if base.itemsize == 2:
        return ((base >> np.uint16(10)) & np.uint16(31)).astype(np.uint16) + np.uint16(first)
    exponent = ((base >> np.uint32(23)) & np.uint32(255)).astype(np.int16)
    return np.clip(exponent - _EXPONENT_FLOOR, 0, CLASSES - 1).astype(np.uint16) + np.uint16(first)
