"""Reductions over axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.coreml.context import Context, dtype_name, int_attr, ints_attr, optional_input
from compiler.exporters.coreml.lowering.table import LOWERINGS

if TYPE_CHECKING:
    import onnx_ir as ir

_REDUCTIONS = {
    "ReduceMean": "reduce_mean",
    "ReduceSum": "reduce_sum",
    "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod",
    "ReduceL1": "reduce_l1_norm",
    "ReduceL2": "reduce_l2_norm",
    "ReduceSumSquare": "reduce_sum_square",
    "ReduceLogSumExp": "reduce_log_sum_exp",
}


@LOWERINGS.lowers(*_REDUCTIONS)
def reduce(ctx: Context, node: ir.Node) -> None:
    """Axes are an operand in newer opsets and an attribute in older ones; none means all, or nothing to do."""
    x = ctx.input(node, 0)
    axes = ctx.ints(node, 1) if optional_input(node, 1) is not None else ints_attr(node, "axes", [])
    if x.rank == 0 or (not axes and int_attr(node, "noop_with_empty_axes", 0)):
        ctx.set(node.outputs[0], ctx.mb.identity(x=x, name=ctx.name(node)))
        return
    truth = dtype_name(x) == "bool"  # Max is "any" and Min is "all", as of 0 and 1
    if truth:
        x = ctx.mb.cast(x=x, dtype="int32", name=ctx.name(node, suffix="_x"))
    result = getattr(ctx.mb, _REDUCTIONS[node.op_type])(
        x=x, axes=axes or list(range(x.rank)), keep_dims=bool(int_attr(node, "keepdims", 1)), name=ctx.name(node)
    )
    if truth:
        result = ctx.mb.cast(x=result, dtype="bool", name=ctx.name(node, suffix="_truth"))
    ctx.set(node.outputs[0], result)
