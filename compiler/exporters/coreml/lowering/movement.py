"""Elements move but do not change: Transpose, Concat, Split, depth and space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.coreml.context import (
    Context,
    Unsupported,
    int_attr,
    ints_attr,
    is_empty,
    known_shape,
    string_attr,
)
from compiler.exporters.coreml.lowering.table import LOWERINGS

if TYPE_CHECKING:
    import onnx_ir as ir


@LOWERINGS.lowers("Transpose")
def transpose(ctx: Context, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    perm = ints_attr(node, "perm", range(x.rank)[::-1])
    if x.rank == 0:
        ctx.set(node.outputs[0], ctx.mb.identity(x=x, name=ctx.name(node)))
        return
    ctx.set(node.outputs[0], ctx.mb.transpose(x=x, perm=perm, name=ctx.name(node)))


@LOWERINGS.lowers("Concat")
def concat(ctx: Context, node: ir.Node) -> None:
    """Empty pieces add nothing, and MIL has no empty tensors: they are left out."""
    pieces = [i for i, value in enumerate(node.inputs) if value is not None and not is_empty(value)]
    values = [ctx.input(node, i) for i in pieces]
    if len(values) == 1:
        ctx.set(node.outputs[0], ctx.mb.identity(x=values[0], name=ctx.name(node)))
        return
    axis = int_attr(node, "axis", 0)
    ctx.set(node.outputs[0], ctx.mb.concat(values=values, axis=axis, name=ctx.name(node)))


@LOWERINGS.lowers("Split")
def split(ctx: Context, node: ir.Node) -> None:
    """The sizes are those of the hub's outputs, however the node states them; empty parts are not written."""
    x = ctx.input(node, 0)
    axis = int_attr(node, "axis", 0) % x.rank
    lengths = [known_shape(output)[axis] for output in node.outputs]
    if None in lengths:
        raise Unsupported(f"it splits axis {axis}, which is flexible", "Fix that axis.")
    parts = [i for i, length in enumerate(lengths) if length]
    if len(parts) == 1:
        ctx.set(node.outputs[parts[0]], ctx.mb.identity(x=x, name=ctx.name(node, parts[0])))
        return
    sizes = [lengths[i] for i in parts]
    results = ctx.mb.split(x=x, split_sizes=sizes, axis=axis, name=ctx.name(node))
    for index, result in zip(parts, results, strict=True):
        result.name = ctx.name(node, index)
        ctx.set(node.outputs[index], result)


@LOWERINGS.lowers("DepthToSpace")
def depth_to_space(ctx: Context, node: ir.Node) -> None:
    """DCR is MIL's depth_to_space, CRD its pixel_shuffle."""
    x, block = ctx.input(node, 0), int_attr(node, "blocksize", 1)
    if string_attr(node, "mode", "DCR") == "CRD":
        result = ctx.mb.pixel_shuffle(x=x, upscale_factor=block, name=ctx.name(node))
    else:
        result = ctx.mb.depth_to_space(x=x, block_size=block, name=ctx.name(node))
    ctx.set(node.outputs[0], result)


@LOWERINGS.lowers("SpaceToDepth")
def space_to_depth(ctx: Context, node: ir.Node) -> None:
    x, block = ctx.input(node, 0), int_attr(node, "blocksize", 1)
    ctx.set(node.outputs[0], ctx.mb.space_to_depth(x=x, block_size=block, name=ctx.name(node)))
