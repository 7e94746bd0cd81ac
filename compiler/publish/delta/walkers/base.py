"""What walkers give: named byte ranges and the arithmetic that suits their elements."""

from __future__ import annotations

from dataclasses import dataclass

from runtimes.artifact.delta.format import WIDTH, Kind


@dataclass(frozen=True, slots=True)
class TensorRange:
    """``size`` bytes at ``offset``; ``key`` is what the same tensor is called in another version of the model."""

    key: str
    offset: int
    size: int
    kind: Kind

    @classmethod
    def of(cls, key: str, offset: int, size: int, kind: Kind) -> TensorRange:
        """Falls back to bytes where the size is no multiple of the element's width (a damaged or packed tensor)."""
        return cls(key, offset, size, kind if size % WIDTH[kind] == 0 else Kind.DIFF8)
