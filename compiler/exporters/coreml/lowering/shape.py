"""Same elements, other shape: Reshape and its kin, Expand, Tile, Identity. Shapes are static in the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.coreml.context import (
    Context,
    Unsupported,
    is_fixed,
    is_used,
    known_shape,
    optional_input,
    output_shape,
)
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir


def reshape_to(ctx: Context, node: ir.Node, x: Var, shape: tuple[int, ...], suffix: str) -> Var:
    """``x`` with ``shape``. MIL's reshape knows no rank 0 on either side."""
    name = ctx.name(node, suffix=suffix)
    if tuple(x.shape) == shape:
        return ctx.mb.identity(x=x, name=name)
    if not shape:
        return ctx.mb.squeeze(x=x, axes=list(range(x.rank)), name=name)
    if x.rank == 0:
        return ctx.mb.expand_dims(x=x, axes=list(range(len(shape))), name=name)
    return ctx.mb.reshape(x=x, shape=list(shape), name=name)


def broadcast_to(ctx: Context, node: ir.Node, x: Var, shape: tuple[int, ...], suffix: str) -> Var:
    """``x`` repeated to ``shape`` by numpy's broadcasting rules; ``shape`` has at least its rank."""
    padded = (1,) * (len(shape) - x.rank) + tuple(x.shape)
    if padded == shape:
        return reshape_to(ctx, node, x, shape, suffix)
    if padded != tuple(x.shape):
        x = reshape_to(ctx, node, x, padded, f"{suffix}_padded")
    reps = [want // have for want, have in zip(shape, padded, strict=True)]
    return ctx.mb.tile(x=x, reps=reps, name=ctx.name(node, suffix=suffix))


@LOWERINGS.lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(ctx: Context, node: ir.Node) -> None:
    """The hub's inferred shape already answers 0, -1 and the axes."""
    x, shape = ctx.input(node, 0), known_shape(node.outputs[0])
    if is_fixed(x.shape):
        ctx.set(node.outputs[0], reshape_to(ctx, node, x, output_shape(node), ""))
    elif node.op_type in ("Squeeze", "Unsqueeze"):
        operation = ctx.mb.squeeze if node.op_type == "Squeeze" else ctx.mb.expand_dims
        axes = ctx.ints(node, 1) or [axis for axis, size in enumerate(x.shape) if size == 1]
        ctx.set(node.outputs[0], operation(x=x, axes=axes, name=ctx.name(node)))
    else:
        ctx.set(node.outputs[0], ctx.mb.reshape(x=x, shape=_open_shape(shape), name=ctx.name(node)))


def _open_shape(shape: tuple[int | None, ...]) -> list[int]:
    """``shape`` with -1 for the one size that follows from the others, for an input with flexible axes."""
    free = [axis for axis, size in enumerate(shape) if size is None]
    if len(free) != 1:
        shown = "x".join("?" if d is None else str(d) for d in shape)
        reason = (
            f"its result {shown} is fixed while its input is flexible"
            if not free
            else f"its result {shown} has two unknowns"
        )
        raise Unsupported(reason, "Write the flexible axis as -1 in the source's reshape, or fix it.")
    return [-1 if axis in free else int(size or 0) for axis, size in enumerate(shape)]


@LOWERINGS.lowers("Expand")
def expand(ctx: Context, node: ir.Node) -> None:
    ctx.set(node.outputs[0], broadcast_to(ctx, node, ctx.input(node, 0), output_shape(node), ""))


@LOWERINGS.lowers("Tile", since=6)
def tile(ctx: Context, node: ir.Node) -> None:
    x, reps = ctx.input(node, 0), ctx.ints(node, 1)
    if not reps or x.rank == 0:
        ctx.set(node.outputs[0], ctx.mb.identity(x=x, name=ctx.name(node)))
        return
    ctx.set(node.outputs[0], ctx.mb.tile(x=x, reps=reps, name=ctx.name(node)))


@LOWERINGS.lowers("Identity", "Dropout")
def identity(ctx: Context, node: ir.Node) -> None:
    """Dropout at inference hands its input through."""
    source = optional_input(node, 0)
    if any(is_used(output) for output in node.outputs[1:]):
        raise Unsupported("its second output (mask) is used", "Export the model in evaluation mode.")
    training = ctx.constant(node, 2) if node.op_type == "Dropout" else None
    if training is not None and bool(training.reshape(-1)[0]):
        raise Unsupported("it is in training mode", "Export the model in evaluation mode.")
    if source is not None and ctx.is_constant(source):
        ctx.set_weight(node.outputs[0], ctx.weight(source))
        return
    ctx.set(node.outputs[0], ctx.mb.identity(x=ctx.input(node, 0), name=ctx.name(node)))
