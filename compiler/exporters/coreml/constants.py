"""Constants on their way into a program: plain arrays, int8 and int4 ones with their scales, and those whose values repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.quantization.palettes import Palette

INT32 = np.iinfo(np.int32)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant operand.

    ``data`` is float32, or int8/uint8/int4 with ``scale`` and ``zero_point`` (both [channels] along ``axis``, or scalars
    with axis None): value = (data - zero_point) * scale. In blocks both have the rank of ``data`` and divide its shape.
    ``palette`` says how the elements of ``data`` repeat, where they do.
    """

    data: Array
    scale: Array | None = None
    zero_point: Array | None = None
    axis: int | None = None
    palette: Palette | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def quantized(self) -> bool:
        return self.scale is not None

    @property
    def blocked(self) -> bool:
        return self.scale is not None and self.scale.ndim == self.data.ndim > 1

    def zero(self) -> Array:
        """The element of ``data`` that stands for 0, one for all or one per channel or block."""
        if self.scale is None:
            return np.zeros((), self.data.dtype)
        return self._fit(self.spread()[1])

    def spread(self) -> tuple[Array, Array]:
        """Scale and zero point with the rank of ``data``: one entry per channel or block."""
        assert self.scale is not None and self.zero_point is not None
        if self.blocked:
            return self.scale, self.zero_point
        shape = [1] * self.data.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    def values(self) -> Array:
        """The float32 values (or, for a constant that was never quantized, the array itself)."""
        if self.scale is None or self.zero_point is None:
            return self.data
        scale, zero = (self._fit(part) for part in self.spread())
        # int32 holds every difference of two bytes, and biases (int32, zero point 0) do not overflow.
        return ((self.data.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale).astype(np.float32)

    def transpose(self, perm: Sequence[int]) -> Weight:
        moved = replace(self, data=np.ascontiguousarray(self.data.transpose(perm)))
        if self.palette is not None and self.palette.axis is not None:
            moved = replace(moved, palette=replace(self.palette, axis=list(perm).index(self.palette.axis)))
        if self.blocked:
            assert self.scale is not None and self.zero_point is not None
            return replace(moved, scale=self.scale.transpose(perm), zero_point=self.zero_point.transpose(perm))
        return replace(moved, axis=None if self.axis is None else list(perm).index(self.axis))

    def scaled(self, factor: float) -> Weight:
        """``factor`` times the weight; a quantized one takes it into its scales."""
        if factor == 1.0:
            return self
        if self.scale is None:
            return replace(self, data=(self.data * np.float32(factor)).astype(self.data.dtype))
        return replace(self, scale=(self.scale * np.float32(factor)).astype(np.float32))

    def _fit(self, part: Array) -> Array:
        """Blocks repeated to the shape of ``data``; what has one entry along an axis broadcasts."""
        for axis, (size, count) in enumerate(zip(self.data.shape, part.shape, strict=True)):
            if 1 < count < size:
                part = np.repeat(part, size // count, axis)
        return part


def to_mil_dtype(array: Array, float_dtype: type[np.floating[Any]]) -> Array:
    """Cast to what MIL stores: float32/float16 by ``float_dtype``, int32 for wider integers, bool.

    Raises:
        OverflowError: an integer does not fit int32, the widest that Core ML computes with.
    """
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # only infinities, which fits_float16 let through, stay infinite
            return array.astype(float_dtype)
    if array.dtype.kind in "iu" and array.dtype not in (np.int8, np.uint8):
        if array.size and (int(array.max()) > INT32.max or int(array.min()) < INT32.min):
            raise OverflowError(f"an integer constant up to {int(np.abs(array).max())} does not fit int32")
        return array.astype(np.int32)
    return array
