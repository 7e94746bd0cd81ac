"""Operator lowerings by family. A new family is one file and one line here."""

from __future__ import annotations

from compiler.exporters.coreml.lowering import (
    activation,
    control,
    convolution,
    elementwise,
    integers,
    linear,
    logic,
    loops,
    movement,
    normalization,
    padding,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    scatter,
    search,
    selection,
    shape,
)
from compiler.exporters.coreml.lowering.table import LOWERINGS

__all__ = [
    "LOWERINGS",
    "activation",
    "control",
    "convolution",
    "elementwise",
    "integers",
    "linear",
    "logic",
    "loops",
    "movement",
    "normalization",
    "padding",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "resize",
    "scatter",
    "search",
    "selection",
    "shape",
]
