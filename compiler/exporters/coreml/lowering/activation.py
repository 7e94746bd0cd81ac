"""Activations that are one MIL operation, or a few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.coreml.context import (
    Context,
    dtype_name,
    float_attr,
    int_attr,
    optional_input,
    string_attr,
)
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir

# ONNX operator: (MIL operation, {MIL parameter: (ONNX attribute, ONNX default)})
_PLAIN: dict[str, tuple[str, dict[str, tuple[str, float]]]] = {
    "Relu": ("relu", {}),
    "Sigmoid": ("sigmoid", {}),
    "Tanh": ("tanh", {}),
    "Softplus": ("softplus", {}),
    "Softsign": ("softsign", {}),
    "Erf": ("erf", {}),
    "LeakyRelu": ("leaky_relu", {"alpha": ("alpha", 0.01)}),
    "Elu": ("elu", {"alpha": ("alpha", 1.0)}),
    "ThresholdedRelu": ("thresholded_relu", {"alpha": ("alpha", 1.0)}),
    "HardSigmoid": ("sigmoid_hard", {"alpha": ("alpha", 0.2), "beta": ("beta", 0.5)}),
}


@LOWERINGS.lowers(*_PLAIN)
def plain(ctx: Context, node: ir.Node) -> None:
    if node.op_type == "ThresholdedRelu":
        _thresholded_relu(ctx, node)
        return
    operation, attributes = _PLAIN[node.op_type]
    parameters: dict[str, Any] = {
        name: ctx.scalar(float_attr(node, onnx_name, default)) for name, (onnx_name, default) in attributes.items()
    }
    x = ctx.input(node, 0)
    ctx.set(node.outputs[0], getattr(ctx.mb, operation)(x=x, name=ctx.name(node), **parameters))


def _thresholded_relu(ctx: Context, node: ir.Node) -> None:
    """x where x > alpha, else 0. MIL's operation of this name keeps x at x = alpha as well, so it is spelled out."""
    x = ctx.input(node, 0)
    above = ctx.mb.greater(x=x, y=ctx.scalar(float_attr(node, "alpha", 1.0)), name=ctx.name(node, suffix="_above"))
    kept = ctx.mb.cast(x=above, dtype=ctx.compute, name=ctx.name(node, suffix="_kept"))
    ctx.set(node.outputs[0], ctx.mb.mul(x=x, y=kept, name=ctx.name(node)))


@LOWERINGS.lowers("Clip")
def clip(ctx: Context, node: ir.Node) -> None:
    """min and max are optional operands; bounds at the end of float32's range are none."""
    x = ctx.input(node, 0)
    low, high = optional_input(node, 1), optional_input(node, 2)
    is_float = dtype_name(x) in ("fp32", "fp16")
    constants = all(v is None or ctx.is_constant(v) for v in (low, high))
    if not (is_float and constants):
        ctx.set(node.outputs[0], _clip_by_comparison(ctx, node, x, low, high))
        return
    limit = float(np.finfo(np.float32).max)
    lowest, highest = _bound(ctx, low, -limit), _bound(ctx, high, limit)
    if lowest > highest:
        ctx.set(node.outputs[0], _clip_by_comparison(ctx, node, x, low, high))
        return
    ctx.set(node.outputs[0], _clip_constant(ctx, node, x, lowest, highest, limit))


def _bound(ctx: Context, value: ir.Value | None, default: float) -> float:
    if value is None:
        return default
    bound = float(ctx.weight(value).values().reshape(-1)[0])
    return min(max(bound, -abs(default)), abs(default))


def _clip_constant(ctx: Context, node: ir.Node, x: Var, lowest: float, highest: float, limit: float) -> Var:
    mb, name = ctx.mb, ctx.name(node)
    if (lowest, highest) == (0.0, 6.0):
        return mb.relu6(x=x, name=name)
    if (lowest, highest) == (0.0, limit):
        return mb.relu(x=x, name=name)
    if highest == limit:
        return mb.identity(x=x, name=name) if lowest == -limit else mb.maximum(x=x, y=ctx.scalar(lowest), name=name)
    if lowest == -limit:
        return mb.minimum(x=x, y=ctx.scalar(highest), name=name)
    return mb.clip(x=x, alpha=ctx.scalar(lowest), beta=ctx.scalar(highest), name=name)


def _clip_by_comparison(ctx: Context, node: ir.Node, x: Var, low: ir.Value | None, high: ir.Value | None) -> Var:
    # ONNX applies the minimum first, so that the maximum wins where the two cross.
    result = x
    if low is not None:
        result = ctx.mb.maximum(x=result, y=ctx.var(low), name=ctx.name(node, suffix="_low"))
    if high is not None:
        result = ctx.mb.minimum(x=result, y=ctx.var(high), name=ctx.name(node, suffix="_high"))
    return result if result is not x else ctx.mb.identity(x=x, name=ctx.name(node))


@LOWERINGS.lowers("PRelu")
def prelu(ctx: Context, node: ir.Node) -> None:
    """MIL's prelu has one slope per channel of axis 1; other slopes are max(x, 0) + slope * min(x, 0)."""
    x = ctx.input(node, 0)
    slope_value = optional_input(node, 1)
    if slope_value is not None and ctx.is_constant(slope_value) and x.rank >= 3:
        slope = ctx.weight(slope_value).values()
        per_channel = (1,) * (x.rank - slope.ndim) + slope.shape
        if per_channel[0] == 1 and per_channel[1] in (1, x.shape[1]) and set(per_channel[2:]) == {1}:
            alpha = ctx.array(np.broadcast_to(slope.reshape(-1), (x.shape[1],)))
            ctx.set(node.outputs[0], ctx.mb.prelu(x=x, alpha=alpha, name=ctx.name(node)))
            return
    positive = ctx.mb.relu(x=x, name=ctx.name(node, suffix="_positive"))
    negative = ctx.mb.minimum(x=x, y=ctx.scalar(0), name=ctx.name(node, suffix="_negative"))
    scaled = ctx.mb.mul(x=negative, y=ctx.input(node, 1), name=ctx.name(node, suffix="_scaled"))
    ctx.set(node.outputs[0], ctx.mb.add(x=positive, y=scaled, name=ctx.name(node)))


@LOWERINGS.lowers("HardSwish")
def hard_swish(ctx: Context, node: ir.Node) -> None:
    """x * max(0, min(1, x / 6 + 0.5))"""
    x = ctx.input(node, 0)
    gate = ctx.mb.sigmoid_hard(x=x, alpha=ctx.scalar(1 / 6), beta=ctx.scalar(0.5), name=ctx.name(node, suffix="_gate"))
    ctx.set(node.outputs[0], ctx.mb.mul(x=x, y=gate, name=ctx.name(node)))


@LOWERINGS.lowers("Gelu")
def gelu(ctx: Context, node: ir.Node) -> None:
    mode = "TANH_APPROXIMATION" if string_attr(node, "approximate", "none") == "tanh" else "EXACT"
    ctx.set(node.outputs[0], ctx.mb.gelu(x=ctx.input(node, 0), mode=mode, name=ctx.name(node)))


@LOWERINGS.lowers("Mish")
def mish(ctx: Context, node: ir.Node) -> None:
    """x * tanh(softplus(x))"""
    x = ctx.input(node, 0)
    soft = ctx.mb.softplus(x=x, name=ctx.name(node, suffix="_softplus"))
    gate = ctx.mb.tanh(x=soft, name=ctx.name(node, suffix="_gate"))
    ctx.set(node.outputs[0], ctx.mb.mul(x=x, y=gate, name=ctx.name(node)))


@LOWERINGS.lowers("Softmax", since=13)
def softmax(ctx: Context, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    ctx.set(node.outputs[0], ctx.mb.softmax(x=x, axis=int_attr(node, "axis", -1), name=ctx.name(node)))


@LOWERINGS.lowers("LogSoftmax", since=13)
def log_softmax(ctx: Context, node: ir.Node) -> None:
    """s - logsumexp(s) with s = x - max(x): exp stays within float16, whose largest argument is 11."""
    x, axis = ctx.input(node, 0), int_attr(node, "axis", -1)
    largest = ctx.mb.reduce_max(x=x, axes=[axis], keep_dims=True, name=ctx.name(node, suffix="_max"))
    shifted = ctx.mb.sub(x=x, y=largest, name=ctx.name(node, suffix="_shifted"))
    total = ctx.mb.reduce_log_sum_exp(x=shifted, axes=[axis], keep_dims=True, name=ctx.name(node, suffix="_total"))
    ctx.set(node.outputs[0], ctx.mb.sub(x=shifted, y=total, name=ctx.name(node)))
