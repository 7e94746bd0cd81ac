"""Operator lowerings. Importing this package fills the table; a new family is one file and one line here."""

from __future__ import annotations

from compiler.exporters.tflite.ops import (
    activation,
    binary,
    boxes,
    branches,
    convolution,
    indexing,
    integers,
    linear,
    loops,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    scatter,
    search,
    shape,
    unary,
)

__all__ = [
    "activation",
    "binary",
    "boxes",
    "branches",
    "convolution",
    "indexing",
    "integers",
    "linear",
    "loops",
    "normalization",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "resize",
    "scatter",
    "search",
    "shape",
    "unary",
]
