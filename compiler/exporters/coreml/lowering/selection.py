"""Parts of a tensor: Slice, Gather, ArgMax, ArgMin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.coreml.context import Context, Unsupported, int_attr, known_shape, optional_input
from compiler.exporters.coreml.lowering.shape import reshape_to
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir


@LOWERINGS.lowers("Slice", since=10)
def slice_(ctx: Context, node: ir.Node) -> None:
    """starts, ends, axes and steps are constants; Python's slice arithmetic is ONNX's."""
    x = ctx.input(node, 0)
    starts, ends = ctx.ints(node, 1), ctx.ints(node, 2)
    assert starts is not None and ends is not None  # the operator's definition requires them
    axes = ctx.ints(node, 3) or list(range(len(starts)))
    steps = ctx.ints(node, 4) or [1] * len(starts)
    per_axis = {axis % x.rank: slice(s, e, step) for axis, s, e, step in zip(axes, starts, ends, steps, strict=True)}
    bounds = [per_axis.get(i, slice(None)).indices(size) for i, size in enumerate(x.shape)]
    result = ctx.mb.slice_by_index(
        x=x,
        begin=[start for start, _, _ in bounds],
        # A stop of -1 means "before the first element" here and "the last element" in MIL: the mask says it instead.
        end=[max(stop, 0) for _, stop, _ in bounds],
        stride=[step for _, _, step in bounds],
        end_mask=[stop < 0 for _, stop, _ in bounds],
        name=ctx.name(node),
    )
    ctx.set(node.outputs[0], result)


@LOWERINGS.lowers("Gather")
def gather(ctx: Context, node: ir.Node) -> None:
    """Indices may be negative in ONNX and, from iOS17 on, not in MIL: they are made positive."""
    x = ctx.input(node, 0)
    axis = int_attr(node, "axis", 0) % x.rank
    indices = _positive_indices(ctx, node, x.shape[axis])
    if indices.rank == 0:
        indices = reshape_to(ctx, node, indices, (1,), "_indices_1d")
    result = ctx.mb.gather(x=x, indices=indices, axis=axis, name=ctx.name(node))
    if result.rank != len(known_shape(node.outputs[0])):
        result = ctx.mb.squeeze(x=result, axes=[axis], name=ctx.name(node, suffix="_squeezed"))
    ctx.set(node.outputs[0], result)


def _positive_indices(ctx: Context, node: ir.Node, size: int) -> Var:
    value = optional_input(node, 1)
    if value is not None and ctx.is_constant(value):
        indices = ctx.weight(value).values()
        if indices.size and not (-size <= int(indices.min()) and int(indices.max()) < size):
            raise Unsupported(f"its indices {int(indices.min())} to {int(indices.max())} leave an axis of {size}")
        wrapped = np.where(indices < 0, indices + size, indices).astype(np.int32)
        return ctx.mb.const(val=wrapped if wrapped.ndim else np.int32(wrapped), name=ctx.name(node, suffix="_indices"))
    indices = ctx.input(node, 1)
    negative = ctx.mb.less(x=indices, y=0, name=ctx.name(node, suffix="_negative"))
    wrapped = ctx.mb.add(x=indices, y=size, name=ctx.name(node, suffix="_wrapped"))
    return ctx.mb.select(cond=negative, a=wrapped, b=indices, name=ctx.name(node, suffix="_indices"))


@LOWERINGS.lowers("ArgMax", "ArgMin")
def arg_extreme(ctx: Context, node: ir.Node) -> None:
    if int_attr(node, "select_last_index", 0):
        raise Unsupported("it wants the last of equal values, Core ML gives the first")
    operation = ctx.mb.reduce_argmax if node.op_type == "ArgMax" else ctx.mb.reduce_argmin
    result = operation(
        x=ctx.input(node, 0),
        axis=int_attr(node, "axis", 0),
        keep_dims=bool(int_attr(node, "keepdims", 1)),
        name=ctx.name(node),
    )
    ctx.set(node.outputs[0], result)
