"""Normalisations over the last axis."""

from __future__ import annotations

import numpy as np

from compiler.importers.tflite.builder import CHANNELS_FIRST, Builder
from compiler.importers.tflite.reader import Operator
from compiler.importers.tflite.table import reads

_SMALLEST_NORM = 1e-6  # LiteRT's l2normalization.h divides by max(norm, epsilon)


@reads("L2_NORMALIZATION")
def l2_normalization(b: Builder, op: Operator) -> None:
    perm = b.perm(op.inputs[0])
    x = b.read(op.inputs[0], perm)
    norm = b.emit("ReduceL2", [x, b.ints([perm.index(len(perm) - 1)])], keepdims=1)
    least = b.constant(np.array(_SMALLEST_NORM, np.float32))
    b.finish(op, b.emit("Div", [x, b.emit("Max", [norm, least])]), perm)


@reads("LOCAL_RESPONSE_NORMALIZATION")
def local_response_normalization(b: Builder, op: Operator) -> None:
    """TFLite's alpha multiplies the sum over 2 * radius + 1 channels, ONNX's the mean."""
    size = 2 * int(op.option("radius")) + 1
    result = b.emit(
        "LRN",
        [b.read(op.inputs[0], CHANNELS_FIRST)],
        size=size,
        alpha=float(op.option("alpha", 0.0)) * size,
        beta=float(op.option("beta", 0.0)),
        bias=float(op.option("bias", 0.0)),
    )
    b.bind(op.outputs[0], result, CHANNELS_FIRST)
