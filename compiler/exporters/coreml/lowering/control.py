"""If as MIL's cond, and what loops share with it: bodies, which see the values outside.

A body computes in float32, in float16 packages too: what a loop carries would be rounded once a step.

Source: ONNX's definitions of Loop and If; coremltools MIL ops, iOS15 control_flow.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.coreml.constants import Weight
from compiler.exporters.coreml.context import Context, Unsupported, is_fixed, is_used, known_shape, optional_input
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir


@LOWERINGS.lowers("If")
def branch(ctx: Context, node: ir.Node) -> None:
    """Both branches give the same types and shapes."""
    compute_wide(ctx, node)
    then, other = (node.attributes[f"{kind}_branch"].as_graph() for kind in ("then", "else"))

    def side(body: ir.Graph) -> Any:
        ends = inlined(ctx, body, ())
        return ends[0] if len(ends) == 1 else tuple(ends)

    predicate = scalar(ctx, node, 0)
    results = ctx.mb.cond(
        pred=predicate, _true_fn=lambda: side(then), _false_fn=lambda: side(other), name=ctx.name(node)
    )
    set_results(ctx, node, results if isinstance(results, (list, tuple)) else [results])


def compute_wide(ctx: Context, node: ir.Node) -> None:
    if ctx.compute == "fp16":
        ctx.notes.append(f"{node.op_type} {node.name!r} computes in float32")
    ctx.compute = "fp32"


def scalar(ctx: Context, node: ir.Node, index: int) -> Var | None:
    """Operand ``index`` without axes, None if it is absent."""
    if optional_input(node, index) is None:
        return None
    return flat(ctx, ctx.input(node, index), ctx.name(node, suffix=f"_scalar_{index}"))


def flat(ctx: Context, var: Var, name: str) -> Var:
    return ctx.mb.squeeze(x=var, name=name) if var.rank else var


def wide(ctx: Context, var: Var) -> Var:
    """With an axis at least: MIL tells numbers from tensors without axes, and what a loop carries must stay what it is."""
    return var if var.rank else ctx.mb.expand_dims(x=var, axes=[0], name=ctx.names.claim(f"{var.name}_wide"))


def _ranked(ctx: Context, var: Var, value: ir.Value) -> Var:
    """``var`` with or without the one axis that ``value`` has or lacks in the hub."""
    rank = len(known_shape(value))
    return flat(ctx, var, ctx.names.claim(f"{value.name}_flat")) if rank == 0 else wide(ctx, var) if rank == 1 else var


def inlined(ctx: Context, body: ir.Graph, values: Sequence[Var]) -> list[Var]:
    """``body``'s operations in the open block; its results as variables of this block's own. Raises Unsupported."""
    with ctx.scope():
        for value, var in zip(body.inputs, values, strict=True):
            ctx.set(value, _ranked(ctx, var, value))
        for node in body:
            _lower_one(ctx, node)
        ctx.compute = "fp32"
        return [ctx.mb.identity(x=ctx.var(end), name=ctx.names.claim(f"{end.name}_end")) for end in body.outputs]


def _lower_one(ctx: Context, node: ir.Node) -> None:
    if node.op_type == "Constant" and "value" in node.attributes:
        ctx.set_weight(node.outputs[0], Weight(np.asarray(node.attributes["value"].as_tensor().numpy())))
        return
    try:
        ctx.lower(node)
    except Unsupported as error:
        raise Unsupported(f"inside it, {node.op_type} {node.name or ''!r}: {error.reason}", error.remedy) from error
    except (ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise Unsupported(f"inside it, coremltools refuses {node.op_type} {node.name or ''!r}: {error}") from error


def set_results(ctx: Context, node: ir.Node, results: Sequence[Var]) -> None:
    """The node's first outputs."""
    for index, (output, result) in enumerate(zip(node.outputs, results, strict=False)):
        if not is_used(output):
            continue
        if not is_fixed(result.shape):
            raise Unsupported(f"{output.name!r} changes its shape from step to step, or from branch to branch")
        result = _ranked(ctx, result, output)
        result.name = ctx.name(node, index)
        ctx.set(output, result)
