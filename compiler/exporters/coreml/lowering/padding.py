"""Pad: constant, reflect and edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.coreml.context import Context, Unsupported, dtype_name, string_attr
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.lowering.windows import interleave
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


@LOWERINGS.lowers("Pad", since=11)
def pad(ctx: Context, node: ir.Node) -> None:
    """pads: [begin of every axis, end of every axis]; negative ones cut, before anything is added."""
    x = ctx.input(node, 0)
    mode = string_attr(node, "mode", "constant")
    if mode not in _MODES:
        raise Unsupported(f"Core ML has no padding mode {mode!r}")
    begin, end = _pads(ctx, node, x.rank)
    if min(begin + end) < 0:
        x = _cut(ctx, node, x, begin, end)
        begin, end = [max(0, b) for b in begin], [max(0, e) for e in end]
    first = next((i for i in range(x.rank) if begin[i] or end[i]), None)
    if first is None:
        ctx.set(node.outputs[0], ctx.mb.identity(x=x, name=ctx.name(node)))
        return
    ctx.set(node.outputs[0], _pad_from(ctx, node, x, mode, (begin, end), first))


def _pad_from(ctx: Context, node: ir.Node, x: Var, mode: str, pads: tuple[list[int], list[int]], first: int) -> Var:
    if dtype_name(x) not in ("fp32", "fp16"):
        raise Unsupported(f"Core ML pads floats only, found {dtype_name(x)}", "Cast to float32 around the padding.")
    if mode != "constant" and x.rank - first > 2:
        # Apple's documentation allows these modes on the last two axes of a tensor only.
        raise Unsupported(f"Core ML pads the last two axes in mode {mode!r}, found axis {first} of {x.rank}")
    fill = ctx.constant(node, 2)
    value = 0.0 if fill is None or mode != "constant" else float(fill.reshape(-1)[0])
    return ctx.mb.pad(
        x=x,
        pad=interleave(pads[0][first:], pads[1][first:]),
        mode=_MODES[mode],
        constant_val=ctx.scalar(value),
        name=ctx.name(node),
    )


def _pads(ctx: Context, node: ir.Node, rank: int) -> tuple[list[int], list[int]]:
    pads = ctx.ints(node, 1)
    assert pads is not None  # the operator's definition requires it
    axes = [axis % rank for axis in ctx.ints(node, 3) or range(rank)]
    begin, end = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        begin[axis], end[axis] = pads[position], pads[position + len(axes)]
    return begin, end


def _cut(ctx: Context, node: ir.Node, x: Var, begin: list[int], end: list[int]) -> Var:
    stops = [size + min(0, e) for size, e in zip(x.shape, end, strict=True)]
    return ctx.mb.slice_by_index(x=x, begin=[max(0, -b) for b in begin], end=stops, name=ctx.name(node, suffix="_cut"))
