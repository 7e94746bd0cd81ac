"""Gemm and MatMul: linear where the right operand is a constant matrix, else matmul."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.coreml.constants import Array, Weight
from compiler.exporters.coreml.context import Context, Unsupported, float_attr, int_attr, optional_input
from compiler.exporters.coreml.lowering.shape import reshape_to
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir


@LOWERINGS.lowers("Gemm")
def gemm(ctx: Context, node: ir.Node) -> None:
    """alpha * A' B' + beta * C"""
    b = _operand(node, 1)
    alpha = float_attr(node, "alpha", 1.0)
    x = ctx.input(node, 0)
    if int_attr(node, "transA", 0):
        x = ctx.mb.transpose(x=x, perm=[1, 0], name=ctx.name(node, suffix="_a"))
    transposed = bool(int_attr(node, "transB", 0))
    if ctx.is_constant(b):
        weight = ctx.weight(b) if transposed else ctx.weight(b).transpose([1, 0])
        bias, late = _gemm_bias(ctx, node, weight.shape[0])
        result = _linear(ctx, node, x, weight.scaled(alpha), bias)
    else:
        late = _late_bias(ctx, node)
        result = ctx.mb.matmul(x=x, y=ctx.var(b), transpose_y=transposed, name=ctx.name(node))
        if alpha != 1.0:
            result = ctx.mb.mul(x=result, y=ctx.scalar(alpha), name=ctx.name(node, suffix="_alpha"))
    if late is not None:
        result = ctx.mb.add(x=result, y=late, name=ctx.name(node, suffix="_biased"))
    ctx.set(node.outputs[0], result)


def _gemm_bias(ctx: Context, node: ir.Node, columns: int) -> tuple[Array | None, Var]:
    """C as linear's constant bias where it is one row, else as a variable to add."""
    value = optional_input(node, 2)
    if value is None:
        return None, None
    if ctx.is_constant(value):
        c = ctx.weight(value).values() * np.float32(float_attr(node, "beta", 1.0))
        if c.size in (1, columns) and (c.ndim == 0 or c.shape[-1] == c.size):
            return ctx.array(np.broadcast_to(c.reshape(-1), (columns,))), None
    return None, _late_bias(ctx, node)


def _late_bias(ctx: Context, node: ir.Node) -> Var:
    if optional_input(node, 2) is None:
        return None
    c, beta = ctx.input(node, 2), float_attr(node, "beta", 1.0)
    return c if beta == 1.0 else ctx.mb.mul(x=c, y=ctx.scalar(beta), name=ctx.name(node, suffix="_beta"))


@LOWERINGS.lowers("MatMul")
def matmul(ctx: Context, node: ir.Node) -> None:
    """numpy.matmul; vectors become matrices for MIL and lose the extra axis afterwards."""
    a, b = _operand(node, 0), _operand(node, 1)
    x = ctx.var(a)
    if ctx.is_constant(b) and len(ctx.weight(b).shape) == 2 and 2 <= x.rank <= 3:
        result = _linear(ctx, node, x, ctx.weight(b).transpose([1, 0]), None)
        ctx.set(node.outputs[0], result)
        return
    y = ctx.var(b)
    if x.rank >= 2 and y.rank >= 2:
        ctx.set(node.outputs[0], ctx.mb.matmul(x=x, y=y, name=ctx.name(node)))
        return
    if x.rank == 1:
        x = reshape_to(ctx, node, x, (1, *x.shape), "_row")
    if y.rank == 1:
        y = reshape_to(ctx, node, y, (*y.shape, 1), "_column")
    product = ctx.mb.matmul(x=x, y=y, name=ctx.name(node, suffix="_product"))
    shape = node.outputs[0].shape
    assert shape is not None
    ctx.set(node.outputs[0], reshape_to(ctx, node, product, tuple(int(d) for d in shape), ""))  # type: ignore[arg-type]


def _linear(ctx: Context, node: ir.Node, x: Var, weight: Weight, bias: Array | None) -> Var:
    """x: [..., in], weight: [out, in], bias: [out]"""
    name = f"{_operand(node, 1).name}"
    return ctx.mb.linear(x=x, weight=ctx.weight_var(weight, name), bias=bias, name=ctx.name(node))


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = optional_input(node, index)
    if value is None:
        raise Unsupported(f"its input {index} is missing")
    return value
