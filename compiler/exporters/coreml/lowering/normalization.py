"""Batch, instance and layer normalization at inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.coreml.constants import Array
from compiler.exporters.coreml.context import Context, Unsupported, float_attr, int_attr, is_used
from compiler.exporters.coreml.lowering.table import LOWERINGS

if TYPE_CHECKING:
    import onnx_ir as ir


def _parameter(ctx: Context, node: ir.Node, index: int) -> Array:
    values = ctx.constant(node, index)
    if values is None:
        raise Unsupported(f"its input {index} is missing")
    return values


@LOWERINGS.lowers("BatchNormalization")
def batch_normalization(ctx: Context, node: ir.Node) -> None:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, all parameters [channels]."""
    if int_attr(node, "training_mode", 0):
        raise Unsupported("it is in training mode", "Export the model in evaluation mode.")
    x = ctx.input(node, 0)
    scale, bias, mean, variance = (_parameter(ctx, node, i) for i in range(1, 5))
    epsilon = float_attr(node, "epsilon", 1e-5)
    if 3 <= x.rank <= 5:
        result = ctx.mb.batch_norm(
            x=x,
            mean=ctx.array(mean),
            variance=ctx.array(variance),
            gamma=ctx.array(scale),
            beta=ctx.array(bias),
            epsilon=ctx.scalar(epsilon),
            name=ctx.name(node),
        )
    else:
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        product = ctx.mb.mul(x=x, y=ctx.array(factor), name=ctx.name(node, suffix="_scaled"))
        result = ctx.mb.add(x=product, y=ctx.array(bias - mean * factor), name=ctx.name(node))
    ctx.set(node.outputs[0], result)


@LOWERINGS.lowers("InstanceNormalization")
def instance_normalization(ctx: Context, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    if x.rank not in (3, 4):
        raise Unsupported(f"Core ML's instance_norm takes rank 3 or 4, found {x.rank}")
    result = ctx.mb.instance_norm(
        x=x,
        gamma=ctx.array(_parameter(ctx, node, 1)),
        beta=ctx.array(_parameter(ctx, node, 2)),
        epsilon=ctx.scalar(float_attr(node, "epsilon", 1e-5)),
        name=ctx.name(node),
    )
    ctx.set(node.outputs[0], result)


@LOWERINGS.lowers("LayerNormalization")
def layer_normalization(ctx: Context, node: ir.Node) -> None:
    """Normalizes over the axes from ``axis`` on; scale and bias broadcast to them."""
    if any(is_used(output) for output in node.outputs[1:]):
        raise Unsupported("its mean or inverse deviation is used")
    x = ctx.input(node, 0)
    first = int_attr(node, "axis", -1) % x.rank
    inner = x.shape[first:]
    bias = ctx.constant(node, 2)
    result = ctx.mb.layer_norm(
        x=x,
        axes=list(range(first, x.rank)),
        gamma=ctx.array(np.broadcast_to(_parameter(ctx, node, 1), inner)),
        beta=None if bias is None else ctx.array(np.broadcast_to(bias, inner)),
        epsilon=ctx.scalar(float_attr(node, "epsilon", 1e-5)),
        name=ctx.name(node),
    )
    ctx.set(node.outputs[0], result)
