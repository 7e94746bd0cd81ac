"""int16 activations with int8 weights: for models that eight bits of activation do not carry.

Source: LiteRT, "Post-training integer quantization with int16 activations" (ai.google.dev/edge/litert/models/post_training_quant).
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from compiler.calibration.dataset import Dataset
from compiler.errors import DataError
from compiler.quantization.engine import Quantized, quantize
from compiler.quantization.plan import QuantizeOptions


def int16x8(model: ir.Model, dataset: Dataset | None, options: QuantizeOptions) -> Quantized:
    """Ranges are the extrema seen: with 65,535 steps, cutting a tail off gains nothing. Raises DataError without samples."""
    if dataset is None:
        raise DataError("int16 activations need typical inputs.", remedy="Give them with --calibration DATA.")
    return quantize(model, dataset, replace(options, activations="int16", observer="min-max"))
