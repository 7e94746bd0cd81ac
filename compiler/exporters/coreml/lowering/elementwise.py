"""Arithmetic, element by element, with broadcasting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.coreml.context import Context, Unsupported, dtype_name, optional_input
from compiler.exporters.coreml.lowering.integers import truncated_quotient
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir

_UNARY = {
    "Exp": "exp",
    "Sqrt": "sqrt",
    "Abs": "abs",
    "Sign": "sign",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Sin": "sin",
    "Cos": "cos",
    "Atan": "atan",
}
_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul"}
_VARIADIC = {"Min": "minimum", "Max": "maximum", "Sum": "add"}


@LOWERINGS.lowers(*_UNARY)
def unary(ctx: Context, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    ctx.set(node.outputs[0], getattr(ctx.mb, _UNARY[node.op_type])(x=x, name=ctx.name(node)))


@LOWERINGS.lowers("Log")
def log(ctx: Context, node: ir.Node) -> None:
    """MIL adds an epsilon to x; 0 makes it the plain logarithm."""
    x = ctx.input(node, 0)
    ctx.set(node.outputs[0], ctx.mb.log(x=x, epsilon=ctx.scalar(0), name=ctx.name(node)))


@LOWERINGS.lowers("Neg")
def negate(ctx: Context, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    ctx.set(node.outputs[0], ctx.mb.mul(x=x, y=_minus_one(ctx, x), name=ctx.name(node)))


def _minus_one(ctx: Context, x: Var) -> object:
    return -1 if dtype_name(x) == "int32" else ctx.scalar(-1)


@LOWERINGS.lowers("Reciprocal")
def reciprocal(ctx: Context, node: ir.Node) -> None:
    """A division: MIL's inverse adds an epsilon to x."""
    x = ctx.input(node, 0)
    ctx.set(node.outputs[0], ctx.mb.real_div(x=ctx.scalar(1), y=x, name=ctx.name(node)))


@LOWERINGS.lowers(*_BINARY)
def binary(ctx: Context, node: ir.Node) -> None:
    x, y = ctx.input(node, 0), ctx.input(node, 1)
    ctx.set(node.outputs[0], getattr(ctx.mb, _BINARY[node.op_type])(x=x, y=y, name=ctx.name(node)))


@LOWERINGS.lowers("Div")
def divide(ctx: Context, node: ir.Node) -> None:
    """Integers divide toward zero in ONNX."""
    mb, x, y = ctx.mb, ctx.input(node, 0), ctx.input(node, 1)
    if dtype_name(x) != "int32":
        ctx.set(node.outputs[0], mb.real_div(x=x, y=y, name=ctx.name(node)))
        return
    ctx.set(node.outputs[0], truncated_quotient(ctx, node, x, y))


@LOWERINGS.lowers(*_VARIADIC)
def variadic(ctx: Context, node: ir.Node) -> None:
    """One or more operands, folded from the left."""
    result = ctx.input(node, 0)
    if len(node.inputs) == 1:
        result = ctx.mb.identity(x=result, name=ctx.name(node))
    for index in range(1, len(node.inputs)):
        operation = getattr(ctx.mb, _VARIADIC[node.op_type])
        result = operation(x=result, y=ctx.input(node, index), name=ctx.name(node))
    ctx.set(node.outputs[0], result)


@LOWERINGS.lowers("Pow")
def power(ctx: Context, node: ir.Node) -> None:
    """Squares and roots get their own operations; other exponents take the base's type."""
    x = ctx.input(node, 0)
    exponent = _scalar_exponent(ctx, node)
    if exponent == 2.0:
        result = ctx.mb.square(x=x, name=ctx.name(node))
    elif exponent == 0.5 and dtype_name(x) != "int32":
        result = ctx.mb.sqrt(x=x, name=ctx.name(node))
    else:
        y = ctx.input(node, 1)
        if dtype_name(y) != dtype_name(x):
            if dtype_name(x) == "int32":
                raise Unsupported("an integer base with a float exponent has no MIL operation")
            y = ctx.mb.cast(x=y, dtype=dtype_name(x), name=ctx.name(node, suffix="_exponent"))
        result = ctx.mb.pow(x=x, y=y, name=ctx.name(node))
    ctx.set(node.outputs[0], result)


def _scalar_exponent(ctx: Context, node: ir.Node) -> float | None:
    value = optional_input(node, 1)
    if value is None or not ctx.is_constant(value):
        return None
    exponent = ctx.weight(value).values()
    # A shaped exponent could still broadcast the base to a higher rank.
    return float(exponent.reshape(-1)[0]) if exponent.size == 1 and exponent.ndim == 0 else None
