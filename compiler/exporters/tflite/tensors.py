"""Tensors of a TFLite graph under construction, and their quantization parameters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class QuantParams:
    """real = (stored - zero_point) * scale; one scale, or one per index of ``axis``.

    With ``block``, a constant has one per run of so many elements along ``axis``, listed in the row-major order of the constant's
    shape with that axis counted in blocks. The file's own tensors have none: see ``context.LoweringContext.read``.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0
    bits: int = 8  # of an activation: int8 or int16; constants carry their own type
    block: int = 0

    @property
    def per_tensor(self) -> bool:
        return len(self.scale) == 1

    @property
    def symmetric(self) -> bool:
        return not any(self.zero_point)

    def range(self) -> tuple[float, float]:
        """Smallest and largest real value that an activation can hold (per tensor only)."""
        half = 1 << (self.bits - 1)
        return (-half - self.zero_point[0]) * self.scale[0], (half - 1 - self.zero_point[0]) * self.scale[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int8 if self.bits == 8 else np.int16)


class Weights(StrEnum):
    """What becomes of an integer constant that a float operator reads."""

    FOLDED = "folded"  # stored as float32 (or float16): the operator runs in float for want of an integer kernel
    STORED = "stored"  # stored as it is, behind a DEQUANTIZE
    HYBRID = "hybrid"  # handed to kernels that quantize their input as it comes, where they exist


def per_tensor(scale: float, zero_point: int, bits: int = 8) -> QuantParams:
    return QuantParams((float(np.float32(scale)),), (int(zero_point),), bits=bits)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor of the file: ``data`` is its content if it is constant; ``quant`` is set on int8 and int32-bias tensors.

    ``variable``: a state that an operator reads and changes, kept from one invocation to the next.
    """

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    quant: QuantParams | None = None
    data: Array | None = None
    variable: bool = False
