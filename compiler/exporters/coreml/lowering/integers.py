"""Integer arithmetic that MIL has in int32 only, and integers of 8 bits kept at their edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.coreml.context import Context, Unsupported, dtype_name, int_attr
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir


def truncated_quotient(ctx: Context, node: ir.Node, x: Var, y: Var, suffix: str = "") -> Var:
    """x / y toward zero, in int32: one more than floor_div where that is negative and something is left.

    Magnitudes and signs would do for all numbers but -2^31, which has no magnitude.
    """
    mb = ctx.mb
    floor = mb.floor_div(x=x, y=y, name=ctx.name(node, suffix="_floor"))
    whole = mb.mul(x=floor, y=y, name=ctx.name(node, suffix="_floor_whole"))
    inexact = mb.not_equal(x=whole, y=x, name=ctx.name(node, suffix="_inexact"))
    negative = mb.less(x=floor, y=0, name=ctx.name(node, suffix="_negative"))
    both = mb.logical_and(x=inexact, y=negative, name=ctx.name(node, suffix="_above"))
    one = mb.cast(x=both, dtype="int32", name=ctx.name(node, suffix="_one"))
    return mb.add(x=floor, y=one, name=ctx.name(node, suffix=suffix))


def as_int32(ctx: Context, node: ir.Node, x: Var, suffix: str) -> Var:
    """``x`` in int32, the type that MIL's arithmetic knows."""
    return x if dtype_name(x) == "int32" else ctx.mb.cast(x=x, dtype="int32", name=ctx.name(node, suffix=suffix))


def to_narrow(ctx: Context, node: ir.Node, x: Var, dtype: str) -> Var:
    """The low bits of an int32 as an integer of 8 or 16 bits, which is what a cast of an integer means in ONNX.

    MIL does not say what its cast does beyond the range, so the value is brought into it first:
    uint8 mod(x, 256), int8 mod(x + 128, 256) - 128, with mod's sign that of the divisor. 16 bits, and before iOS17 bytes
    too, stay in int32: MIL has no arithmetic on them.
    """
    bits = 16 if dtype.endswith("16") else 8
    mb, offset = ctx.mb, 0 if dtype.startswith("u") else 1 << (bits - 1)
    shifted = mb.add(x=x, y=offset, name=ctx.name(node, suffix="_shifted")) if offset else x
    low = mb.mod(x=shifted, y=1 << bits, name=ctx.name(node, suffix="_low_bits"))
    value = mb.sub(x=low, y=offset, name=ctx.name(node, suffix="_value")) if offset else low
    return mb.cast(x=value, dtype=dtype if bits == 8 and ctx.has_bytes else "int32", name=ctx.name(node))


@LOWERINGS.lowers("Mod")
def modulo(ctx: Context, node: ir.Node) -> None:
    """Integers: the divisor's sign (MIL's mod), or with ``fmod`` the dividend's (x - y * trunc(x / y)).

    Floats are left to the decomposition that all formats share.
    """
    x, y = ctx.input(node, 0), ctx.input(node, 1)
    dtype = dtype_name(x)
    if dtype not in ("int32", "int8", "uint8"):
        raise Unsupported(f"a remainder of {dtype} is not lowered")
    wide_x, wide_y = as_int32(ctx, node, x, "_x"), as_int32(ctx, node, y, "_y")
    if int_attr(node, "fmod", 0):
        whole = ctx.mb.mul(
            x=truncated_quotient(ctx, node, wide_x, wide_y, "_quotient"),
            y=wide_y,
            name=ctx.name(node, suffix="_whole"),
        )
        result = ctx.mb.sub(x=wide_x, y=whole, name=ctx.name(node))
    else:
        result = ctx.mb.mod(x=wide_x, y=wide_y, name=ctx.name(node))
    # A remainder is smaller than its divisor: back in the narrow type nothing is lost.
    ctx.set(node.outputs[0], result if dtype == "int32" else ctx.mb.cast(x=result, dtype=dtype, name=ctx.name(node)))
