"""Normalization by constants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite.context import LoweringContext, Unsupported, shape_of
from compiler.exporters.tflite.ops.unary import any_order, need_type, note_island
from compiler.exporters.tflite.table import lowers

if TYPE_CHECKING:
    import onnx_ir as ir


@lowers("BatchNormalization", since=9)
def batch_normalization(context: LoweringContext, node: ir.Node) -> None:
    """y = x * k + (bias - mean * k) with k = scale / sqrt(variance + epsilon), per channel (axis 1)."""
    if attr.integer(node, "training_mode", 0):
        raise Unsupported("it is in training mode", "Export the model for inference.")
    source = attr.first(node)
    need_type(source, ("float32",))
    rank = len(shape_of(source))
    scale, bias, mean, variance = (
        context.required_constant(attr.operand(node, i), what).astype(np.float64)
        for i, what in ((1, "scale"), (2, "bias"), (3, "mean"), (4, "variance"))
    )
    factor = scale / np.sqrt(variance + attr.real(node, "epsilon", 1e-5))
    offset = bias - mean * factor
    perm = any_order(context, source)
    x = context.read(source, perm)
    shape = (1, -1, *([1] * (rank - 2))) if rank > 1 else (-1,)
    literals = [
        context.literal(np.transpose(values.astype(np.float32).reshape(shape), perm), "batch_norm")
        for values in (factor, offset)
    ]
    scaled = context.temporary(x.shape, x)
    context.emit("MUL", [x, literals[0]], [scaled], "MulOptions")
    activation, output = context.fused_activation(node.outputs[0])
    result = context.produce(output, perm)
    context.emit("ADD", [scaled, literals[1]], [result], "AddOptions", fusedActivationFunction=activation)
    note_island(context, node, [source], None)
