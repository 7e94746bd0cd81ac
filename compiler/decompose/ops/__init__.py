"""Decompositions by family. Importing this package fills DECOMPOSITIONS."""

from compiler.decompose.ops import (
    activation,
    contraction,
    einsum,
    indexing,
    integers,
    normalization,
    pooling,
    quantized,
    recurrent,
    reduction,
    resampling,
    spectral,
    trigonometry,
)

__all__ = [
    "activation",
    "contraction",
    "einsum",
    "indexing",
    "integers",
    "normalization",
    "pooling",
    "quantized",
    "recurrent",
    "reduction",
    "resampling",
    "spectral",
    "trigonometry",
]
