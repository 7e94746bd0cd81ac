"""One file per family of TFLite operators; importing this package fills READINGS."""

from __future__ import annotations

from compiler.importers.tflite.ops import (
    activation,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    shape,
    slicing,
)
from compiler.importers.tflite.table import READINGS

__all__ = [
    "READINGS",
    "activation",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "resize",
    "shape",
    "slicing",
]
