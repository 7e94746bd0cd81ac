"""What walkers give: named byte ranges and the arithmetic that suits their elements."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtimes.artifact.delta.format import WIDTH, Kind
from runtimes.artifact.delta.predict import Layout


@dataclass(frozen=True, slots=True)
class TensorRange:
    """``size`` bytes at ``offset``; ``key`` is what the same tensor is called in another version of the model.

    ``dims``: the tensor's shape, () where the format does not tell. ``axis``: its channels' axis where that is known.
    ``scale``: key of the range that holds its quantization scales, one per channel or one for all.
    """

    key: str
    offset: int
    size: int
    kind: Kind
    dims: tuple[int, ...] = ()
    axis: int | None = None
    scale: str | None = None

    @classmethod
    def of(cls, key: str, offset: int, size: int, kind: Kind, dims: tuple[int, ...] = ()) -> TensorRange:
        """Falls back to bytes where the size is no multiple of the element's width (a damaged or packed tensor)."""
        fits = size % WIDTH[kind] == 0
        shaped = fits and math.prod(dims) * WIDTH[kind] == size
        return cls(key, offset, size, kind if fits else Kind.DIFF8, dims if shaped else ())

    @property
    def elements(self) -> int:
        return self.size // WIDTH[self.kind]

    def layout(self, axis: int) -> Layout:
        """How ``axis`` lies in the elements."""
        return Layout(self.dims[axis], math.prod(self.dims[axis:][1:]))
