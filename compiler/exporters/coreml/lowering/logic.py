"""Comparisons, Boolean operators, Where and Cast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.coreml.context import Context, Unsupported, dtype_name, is_fixed, output_shape
from compiler.exporters.coreml.lowering.integers import as_int32, to_narrow
from compiler.exporters.coreml.lowering.shape import broadcast_to
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir

_COMPARE = {
    "Equal": "equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
}
_BOOLEAN = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}
# ONNX element types that a cast may produce, in MIL's names. int64 is int32 throughout (Core ML has no wider integer).
_CASTS = {"FLOAT": "", "INT32": "int32", "INT64": "int32", "BOOL": "bool"}
_CASTS |= {"FLOAT16": "fp16", "DOUBLE": "", "BFLOAT16": ""}  # MIL has no float64 and no bfloat16
_CASTS |= {name.upper(): name for name in ("int8", "uint8", "int16", "uint16")}


@LOWERINGS.lowers(*_COMPARE)
def compare(ctx: Context, node: ir.Node) -> None:
    x, y = ctx.input(node, 0), ctx.input(node, 1)
    if dtype_name(x) == "bool":  # only Equal is defined on Booleans
        x = ctx.mb.cast(x=x, dtype="int32", name=ctx.name(node, suffix="_x"))
        y = ctx.mb.cast(x=y, dtype="int32", name=ctx.name(node, suffix="_y"))
    ctx.set(node.outputs[0], getattr(ctx.mb, _COMPARE[node.op_type])(x=x, y=y, name=ctx.name(node)))


@LOWERINGS.lowers(*_BOOLEAN)
def boolean(ctx: Context, node: ir.Node) -> None:
    x, y = ctx.input(node, 0), ctx.input(node, 1)
    ctx.set(node.outputs[0], getattr(ctx.mb, _BOOLEAN[node.op_type])(x=x, y=y, name=ctx.name(node)))


@LOWERINGS.lowers("Not")
def logical_not(ctx: Context, node: ir.Node) -> None:
    ctx.set(node.outputs[0], ctx.mb.logical_not(x=ctx.input(node, 0), name=ctx.name(node)))


@LOWERINGS.lowers("Where")
def where(ctx: Context, node: ir.Node) -> None:
    """MIL derives the result's shape from the two branches alone, so one of them takes the full shape first."""
    condition, a, b = (ctx.input(node, i) for i in range(3))
    if not is_fixed((*condition.shape, *a.shape, *b.shape)):
        # No size to broadcast to: a branch of the result's own rank that no axis of the condition widens will do.
        if not any(_covers(branch, condition) for branch in (a, b)):
            raise Unsupported(
                "its condition widens both branches along a flexible axis", "Fix the sizes of the inputs."
            )
        ctx.set(node.outputs[0], ctx.mb.select(cond=condition, a=a, b=b, name=ctx.name(node)))
        return
    shape = output_shape(node)
    if tuple(a.shape) != shape and tuple(b.shape) != shape:
        a = broadcast_to(ctx, node, a, shape, "_branch")
    ctx.set(node.outputs[0], ctx.mb.select(cond=condition, a=a, b=b, name=ctx.name(node)))


def _covers(branch: Var, condition: Var) -> bool:
    """Whether the condition broadcasts to the branch's shape."""
    behind = tuple(branch.shape[branch.rank - condition.rank :])
    return branch.rank >= condition.rank and all(c in (1, d) for c, d in zip(condition.shape, behind, strict=True))


@LOWERINGS.lowers("Cast")
def cast(ctx: Context, node: ir.Node) -> None:
    """float to integer truncates toward zero, anything to bool asks for non-zero: the same in ONNX and MIL."""
    import onnx_ir as ir

    to = ir.DataType(node.attributes["to"].as_int())
    if to.name not in _CASTS:
        raise Unsupported(f"a cast to {to.name} is not lowered", f"Cast to one of {', '.join(_CASTS)}.")
    x = ctx.input(node, 0)
    dtype = _CASTS[to.name] or ctx.compute
    if dtype in ("int16", "uint16"):
        ctx.set(node.outputs[0], to_narrow(ctx, node, as_int32(ctx, node, x, "_int32"), dtype))
        return
    if dtype == dtype_name(x):
        ctx.set(node.outputs[0], ctx.mb.identity(x=x, name=ctx.name(node)))
        return
    if dtype in ("int8", "uint8"):
        ctx.set(node.outputs[0], to_narrow(ctx, node, as_int32(ctx, node, x, "_int32"), dtype))
        return
    if dtype == "bool" and dtype_name(x) in ("fp32", "fp16"):
        # 0.3 is true in ONNX; a cast by way of an integer would make it false, a comparison cannot.
        ctx.set(node.outputs[0], ctx.mb.not_equal(x=x, y=ctx.scalar(0), name=ctx.name(node)))
        return
    ctx.set(node.outputs[0], ctx.mb.cast(x=x, dtype=dtype, name=ctx.name(node)))
