"""Integer inputs and outputs seen as real numbers, so that a full-integer model takes and gives what its manifest says."""

from typing import Any, NamedTuple

import numpy as np

from runtimes.session import Array


class Scaling(NamedTuple):
    """real = (stored - zero_point) * scale, per tensor. ``dtype``: int8, uint8 or int16."""

    dtype: np.dtype[Any]
    scale: float
    zero_point: int

    def to_integers(self, real: Array) -> Array:
        """Nearest code, ties to even, clipped to the type's range: ONNX QuantizeLinear's rule."""
        limits = np.iinfo(self.dtype)
        codes = np.rint(real / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(codes, limits.min, limits.max).astype(self.dtype))

    def to_reals(self, stored: Array) -> Array:
        """float32."""
        return np.asarray((stored.astype(np.int32) - self.zero_point).astype(np.float32) * np.float32(self.scale))
