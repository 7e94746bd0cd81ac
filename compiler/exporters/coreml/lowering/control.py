"""Loop and If as MIL's while_loop and cond. Bodies see the values outside; values carried from step to step keep their shapes.

A body computes in float32, in float16 packages too: what a loop carries would be rounded once a step.

Source: ONNX's definitions of Loop and If; coremltools MIL ops, iOS15 control_flow.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.coreml.constants import INT32, Weight
from compiler.exporters.coreml.context import Context, Unsupported, is_fixed, is_used, known_shape, optional_input
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir

_ENDLESS_REMEDY = "Give the loop a number of steps, or a condition."


@LOWERINGS.lowers("Loop")
def loop(ctx: Context, node: ir.Node) -> None:
    """while i < steps and condition: (i, condition, *carried) = (i + 1, *body(i, condition, *carried))."""
    body, carried = node.attributes["body"].as_graph(), len(node.inputs) - 2
    if len(node.outputs) > carried:
        raise Unsupported("it collects values of all its steps", "Return what the loop carries alone.")
    _compute_wide(ctx, node)
    steps, condition = _steps(ctx, node), _scalar(ctx, node, 1)
    if steps is None and condition is None:
        raise Unsupported("it has neither a number of steps nor a condition", _ENDLESS_REMEDY)
    start = ctx.mb.const(val=np.int32(0), name=ctx.name(node, suffix="_start"))
    go = ctx.mb.const(val=np.ones(1, np.bool_), name=ctx.name(node, suffix="_go")) if condition is None else condition

    def goes_on(i: Var, go: Var, *_: Var) -> Var:
        less = None if steps is None else ctx.mb.less(x=i, y=steps, name=ctx.name(node, suffix="_less"))
        if condition is None:
            return less
        more = _flat(ctx, go, ctx.name(node, suffix="_more"))
        return more if less is None else ctx.mb.logical_and(x=less, y=more, name=ctx.name(node, suffix="_on"))

    def step(i: Var, go: Var, *values: Var) -> list[Var]:
        ends = _inlined(ctx, body, [i, go, *values])
        return [ctx.mb.add(x=i, y=np.int32(1), name=ctx.name(node, suffix="_next")), *(_wide(ctx, end) for end in ends)]

    values = [ctx.input(node, 2 + k) for k in range(carried)]
    results = ctx.mb.while_loop(
        _cond=goes_on, _body=step, loop_vars=(start, *(_wide(ctx, v) for v in (go, *values))), name=ctx.name(node)
    )
    _set(ctx, node, results[2:])


@LOWERINGS.lowers("If")
def branch(ctx: Context, node: ir.Node) -> None:
    """Both branches give the same types and shapes."""
    _compute_wide(ctx, node)
    then, other = (node.attributes[f"{kind}_branch"].as_graph() for kind in ("then", "else"))

    def side(body: ir.Graph) -> Any:
        ends = _inlined(ctx, body, ())
        return ends[0] if len(ends) == 1 else tuple(ends)

    predicate = _scalar(ctx, node, 0)
    results = ctx.mb.cond(
        pred=predicate, _true_fn=lambda: side(then), _false_fn=lambda: side(other), name=ctx.name(node)
    )
    _set(ctx, node, results if isinstance(results, (list, tuple)) else [results])


def _compute_wide(ctx: Context, node: ir.Node) -> None:
    if ctx.compute == "fp16":
        ctx.notes.append(f"{node.op_type} {node.name!r} computes in float32")
    ctx.compute = "fp32"


def _steps(ctx: Context, node: ir.Node) -> Var | None:
    """None for no limit, which is also what a constant beyond int32 means."""
    value = optional_input(node, 0)
    if value is not None and ctx.is_constant(value) and int(ctx.weight(value).values().reshape(())) > INT32.max:
        return None
    return _scalar(ctx, node, 0)


def _scalar(ctx: Context, node: ir.Node, index: int) -> Var | None:
    """Operand ``index`` without axes, None if it is absent."""
    if optional_input(node, index) is None:
        return None
    return _flat(ctx, ctx.input(node, index), ctx.name(node, suffix=f"_scalar_{index}"))


def _flat(ctx: Context, var: Var, name: str) -> Var:
    return ctx.mb.squeeze(x=var, name=name) if var.rank else var


def _wide(ctx: Context, var: Var) -> Var:
    """With an axis at least: MIL tells numbers from tensors without axes, and what a loop carries must stay what it is."""
    return var if var.rank else ctx.mb.expand_dims(x=var, axes=[0], name=ctx.names.claim(f"{var.name}_wide"))


def _ranked(ctx: Context, var: Var, value: ir.Value) -> Var:
    """``var`` with or without the one axis that ``value`` has or lacks in the hub."""
    rank = len(known_shape(value))
    return (
        _flat(ctx, var, ctx.names.claim(f"{value.name}_flat")) if rank == 0 else _wide(ctx, var) if rank == 1 else var
    )


def _inlined(ctx: Context, body: ir.Graph, values: Sequence[Var]) -> list[Var]:
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


def _set(ctx: Context, node: ir.Node, results: Sequence[Var]) -> None:
    for index, (output, result) in enumerate(zip(node.outputs, results, strict=True)):
        if not is_used(output):
            continue
        if not is_fixed(result.shape):
            raise Unsupported(f"{output.name!r} changes its shape from step to step, or from branch to branch")
        result = _ranked(ctx, result, output)
        result.name = ctx.name(node, index)
        ctx.set(output, result)
