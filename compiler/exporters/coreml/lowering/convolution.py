"""Conv and ConvTranspose, one to three spatial axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.coreml.context import (
    Context,
    Unsupported,
    int_attr,
    ints_attr,
    is_fixed,
    known_shape,
    string_attr,
)
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.lowering.windows import interleave, window_of
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir


@LOWERINGS.lowers("Conv")
def conv(ctx: Context, node: ir.Node) -> None:
    """weight: [out_channels, in_channels / group, *kernel], the same layout in ONNX and MIL."""
    x, weight = ctx.input(node, 0), ctx.input(node, 1)
    window = window_of(node, weight.shape[2:], x.shape[2:])
    bias, late_bias = _bias(ctx, node)
    result = ctx.mb.conv(
        x=x,
        weight=weight,
        bias=bias,
        strides=window.strides,
        pad_type="custom",
        pad=interleave(window.begin, window.end),
        dilations=window.dilations,
        groups=int_attr(node, "group", 1),
        name=ctx.name(node),
    )
    ctx.set(node.outputs[0], _add_bias(ctx, node, result, late_bias))


@LOWERINGS.lowers("ConvTranspose")
def conv_transpose(ctx: Context, node: ir.Node) -> None:
    """weight: [in_channels, out_channels / group, *kernel].

    The output size follows the hub's shape; what output_padding adds beyond the full convolution is appended as zeros
    before the bias, because no input reaches it.
    """
    x, weight = ctx.input(node, 0), ctx.input(node, 1)
    if is_fixed(x.shape[2:]):
        begin, end = _transpose_pads(node, x.shape[2:], weight.shape[2:], _spatial(node))
    else:
        begin, end = _stated_pads(node, len(weight.shape) - 2)
    beyond = [max(0, -e) for e in end]
    bias, late_bias = _bias(ctx, node)
    if any(beyond) and bias is not None:
        bias, late_bias = None, ctx.mb.const(val=bias, name=ctx.name(node, suffix="_bias"))
    rank = len(begin)
    result = ctx.mb.conv_transpose(
        x=x,
        weight=weight,
        bias=bias,
        pad=interleave(begin, [max(0, e) for e in end]),
        pad_type="custom",
        strides=ints_attr(node, "strides", [1] * rank),
        dilations=ints_attr(node, "dilations", [1] * rank),
        groups=int_attr(node, "group", 1),
        name=ctx.name(node),
    )
    if any(beyond):
        pads = interleave([0] * rank, beyond)
        result = ctx.mb.pad(
            x=result, pad=pads, mode="constant", constant_val=ctx.scalar(0), name=ctx.name(node, suffix="_padded")
        )
    ctx.set(node.outputs[0], _add_bias(ctx, node, result, late_bias))


def _spatial(node: ir.Node) -> tuple[int, ...]:
    """Height, width and the like of the result; the batch may be flexible."""
    return tuple(size or 0 for size in known_shape(node.outputs[0])[2:])


def _stated_pads(node: ir.Node, rank: int) -> tuple[list[int], list[int]]:
    """As ``_transpose_pads`` for flexible sizes: the paddings that the node states, less its output padding."""
    if string_attr(node, "auto_pad", "NOTSET").startswith("SAME") or "output_shape" in node.attributes:
        raise Unsupported("it pads by the size, which is flexible", "State the padding, or fix the sizes.")
    pads, more = ints_attr(node, "pads", [0] * 2 * rank), ints_attr(node, "output_padding", [0] * rank)
    return pads[:rank], [p - m for p, m in zip(pads[rank:], more, strict=True)]


def _transpose_pads(
    node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """Begin and end padding with out = stride * (in - 1) + extent - begin - end; end may be negative.

    Source: ONNX operators, ConvTranspose: with output_shape or SAME_*, the total is split, and the odd element goes to
    the end for SAME_UPPER and to the beginning otherwise.
    """
    rank = len(kernel)
    strides, dilations = ints_attr(node, "strides", [1] * rank), ints_attr(node, "dilations", [1] * rank)
    full = [s * (i - 1) + (k - 1) * d + 1 for i, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)]
    totals = [f - o for f, o in zip(full, out, strict=True)]
    auto_pad = string_attr(node, "auto_pad", "NOTSET")
    explicit = auto_pad in ("NOTSET", "VALID") and "output_shape" not in node.attributes
    if explicit:
        begin = ints_attr(node, "pads", [0] * 2 * rank)[:rank] if auto_pad == "NOTSET" else [0] * rank
    else:
        begin = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in (max(0, t) for t in totals)]
    if min(begin) < 0:
        raise Unsupported(f"its padding {begin} is negative")
    return begin, [t - b for t, b in zip(totals, begin, strict=True)]


def _bias(ctx: Context, node: ir.Node) -> tuple[np.ndarray | None, Var]:
    """The bias as a constant parameter, or as a variable to add afterwards (before iOS17 MIL takes constants only)."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return None, None
    if ctx.is_constant(value):
        return ctx.array(ctx.weight(value).values()), None
    return None, ctx.var(value)


def _add_bias(ctx: Context, node: ir.Node, result: Var, bias: Var) -> Var:
    if bias is None:
        return result
    shape = [1, -1] + [1] * (result.rank - 2)
    column = ctx.mb.reshape(x=bias, shape=shape, name=ctx.name(node, suffix="_bias_column"))
    return ctx.mb.add(x=result, y=column, name=ctx.name(node, suffix="_biased"))
