"""Scatters to places computed at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.coreml.context import Context, Unsupported, output_shape, string_attr
from compiler.exporters.coreml.lowering.table import LOWERINGS

if TYPE_CHECKING:
    import onnx_ir as ir

# ONNX's reductions and MIL's modes.
_MODES = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


@LOWERINGS.lowers("ScatterND", since=11)
def scatter_nd(ctx: Context, node: ir.Node) -> None:
    """MIL does not say what it does with negative places, so they are counted from the front first."""
    if node.inputs[1] is not None and ctx.is_constant(node.inputs[1]):
        raise Unsupported("constant places have a form without a scatter")
    mb, places = ctx.mb, ctx.input(node, 1)
    limits = list(output_shape(node)[: int(places.shape[-1])])
    wrapped = mb.mod(x=places, y=limits if len(limits) > 1 else limits[0], name=ctx.name(node, suffix="_places"))
    mode = _MODES[string_attr(node, "reduction", "none")]
    data, updates = ctx.input(node, 0), ctx.input(node, 2)
    ctx.set(node.outputs[0], mb.scatter_nd(data=data, indices=wrapped, updates=updates, mode=mode, name=ctx.name(node)))
