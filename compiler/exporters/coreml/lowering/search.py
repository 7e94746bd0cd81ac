"""Where elements are and what they add up to: TopK, GatherND, CumSum, EyeLike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.coreml.constants import Weight
from compiler.exporters.coreml.context import Context, Unsupported, int_attr, is_used, optional_input, output_shape
from compiler.exporters.coreml.lowering.shape import reshape_to
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir


@LOWERINGS.lowers("TopK", since=10)
def top_k(ctx: Context, node: ir.Node) -> None:
    """k is a constant. Both outputs are always computed: MIL's order is sorted, which ONNX allows even when not asked."""
    x, k = ctx.input(node, 0), ctx.ints(node, 1)
    assert k is not None  # the operator's definition requires it
    axis = int_attr(node, "axis", -1) % x.rank
    if not 0 < k[0] <= x.shape[axis]:
        raise Unsupported(f"its k {k[0]} is not between 1 and the {x.shape[axis]} elements of axis {axis}")
    ascending = not int_attr(node, "largest", 1)
    results = ctx.mb.topk(x=x, k=k[0], axis=axis, ascending=ascending, name=ctx.name(node))
    for index, result in enumerate(results):
        if is_used(node.outputs[index]):
            result.name = ctx.name(node, index)
            ctx.set(node.outputs[index], result)


@LOWERINGS.lowers("CumSum")
def cumulative_sum(ctx: Context, node: ir.Node) -> None:
    x, axes = ctx.input(node, 0), ctx.ints(node, 1)
    assert axes is not None  # the operator's definition requires it
    result = ctx.mb.cumsum(
        x=x,
        axis=axes[0] % x.rank,
        exclusive=bool(int_attr(node, "exclusive", 0)),
        reverse=bool(int_attr(node, "reverse", 0)),
        name=ctx.name(node),
    )
    ctx.set(node.outputs[0], result)


@LOWERINGS.lowers("GatherND")
def gather_nd(ctx: Context, node: ir.Node) -> None:
    """Each row of indices names an element, or a block of the axes left over."""
    x, batch = ctx.input(node, 0), int_attr(node, "batch_dims", 0)
    keywords: dict[str, Any] = {}
    if batch:
        if ctx.target.version < 16:
            raise Unsupported("it has batch axes, which Core ML gathers since iOS16", "Choose iOS16 or later.")
        keywords["batch_dims"] = batch
    indices = _positive_rows(ctx, node, tuple(int(d) for d in x.shape[batch:]))
    result = ctx.mb.gather_nd(x=x, indices=indices, name=ctx.name(node), **keywords)
    if tuple(result.shape) != output_shape(node):
        result = reshape_to(ctx, node, result, output_shape(node), "_shaped")
    ctx.set(node.outputs[0], result)


def _positive_rows(ctx: Context, node: ir.Node, sizes: tuple[int, ...]) -> Var:
    """Indices [..., n] counted from the start of the first n axes: MIL calls negative ones out of bounds since iOS17."""
    value = optional_input(node, 1)
    if value is not None and ctx.is_constant(value):
        rows = ctx.weight(value).values()
        limits = np.array(sizes[: rows.shape[-1]])
        if not (np.all(rows >= -limits) and np.all(rows < limits)):
            raise Unsupported(f"its indices {rows.min()} to {rows.max()} leave axes of {limits.tolist()}")
        return ctx.mb.const(
            val=np.where(rows < 0, rows + limits, rows).astype(np.int32), name=ctx.name(node, suffix="_indices")
        )
    indices = ctx.input(node, 1)
    limits = np.array(sizes[: indices.shape[-1]], np.int32)
    negative = ctx.mb.less(x=indices, y=0, name=ctx.name(node, suffix="_negative"))
    wrapped = ctx.mb.add(x=indices, y=limits, name=ctx.name(node, suffix="_wrapped"))
    return ctx.mb.select(cond=negative, a=wrapped, b=indices, name=ctx.name(node, suffix="_indices"))


@LOWERINGS.lowers("EyeLike")
def eye_like(ctx: Context, node: ir.Node) -> None:
    """Known when the program is built: the shape is static."""
    rows, columns = output_shape(node)
    dtype = node.outputs[0].dtype
    if dtype is None:
        raise Unsupported("its element type is unknown")
    eye = np.eye(rows, columns, int_attr(node, "k", 0))
    ctx.set_weight(node.outputs[0], Weight(eye.astype(dtype.numpy())))
