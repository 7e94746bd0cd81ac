"""Pooling: windows with explicit paddings, and the global ones as reductions."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.coreml.constants import Array
from compiler.exporters.coreml.context import Context, Unsupported, int_attr, ints_attr, is_fixed, is_used, known_shape
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.lowering.windows import Window, interleave, window_of

if TYPE_CHECKING:
    import onnx_ir as ir


def _window(ctx: Context, node: ir.Node, sizes: tuple[int, ...]) -> tuple[Window, list[int]]:
    """The window and the end padding that gives the hub's output shape (ceil_mode becomes padding)."""
    window = window_of(node, ints_attr(node, "kernel_shape", []), sizes)
    if any(d != 1 for d in window.dilations):
        raise Unsupported(f"Core ML's pooling has no dilations, found {window.dilations}")
    if not is_fixed(sizes):
        if int_attr(node, "ceil_mode", 0):
            raise Unsupported(
                "ceil_mode pads by the size, which is flexible", "Fix the sizes, or pool without ceil_mode."
            )
        return window, window.end
    return window, window.end_for(sizes, _spatial(node))


def _spatial(node: ir.Node) -> tuple[int, ...]:
    """Height, width and the like of the result; the batch may be flexible."""
    return tuple(size or 0 for size in known_shape(node.outputs[0])[2:])


@LOWERINGS.lowers("MaxPool")
def max_pool(ctx: Context, node: ir.Node) -> None:
    """Padding never wins: MIL pads with minus infinity, as ONNX does."""
    if len(node.outputs) > 1 and is_used(node.outputs[1]):
        raise Unsupported("its second output (indices) is used")
    x = ctx.input(node, 0)
    window, end = _window(ctx, node, x.shape[2:])
    result = ctx.mb.max_pool(
        x=x,
        kernel_sizes=window.kernel,
        strides=window.strides,
        pad_type="custom",
        pad=interleave(window.begin, end),
        name=ctx.name(node),
    )
    ctx.set(node.outputs[0], result)


@LOWERINGS.lowers("AveragePool")
def average_pool(ctx: Context, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    window, end = _window(ctx, node, x.shape[2:])
    include = bool(int_attr(node, "count_include_pad", 0))
    result = ctx.mb.avg_pool(
        x=x,
        kernel_sizes=window.kernel,
        strides=window.strides,
        pad_type="custom",
        pad=interleave(window.begin, end),
        exclude_padding_from_average=not include,
        name=ctx.name(node),
    )
    if include and any(e > own for e, own in zip(end, window.end, strict=True)):
        # MIL divides by the whole kernel; ONNX counts the model's own padding but not what ceil_mode adds.
        factors = _ceil_factors(window, x.shape[2:], _spatial(node))
        result = ctx.mb.mul(x=result, y=ctx.array(factors), name=ctx.name(node, suffix="_recounted"))
    ctx.set(node.outputs[0], result)


def _ceil_factors(window: Window, sizes: tuple[int, ...], out: tuple[int, ...]) -> Array:
    """kernel size / counted elements, per output position: [1, 1, *out], float32."""
    counts: list[list[int]] = []
    rows = zip(sizes, out, window.kernel, window.strides, window.begin, window.end, strict=True)
    for size, length, kernel, stride, begin, end in rows:
        counts.append([min(i * stride + kernel, size + begin + end) - i * stride for i in range(length)])
    counted = np.array([np.prod(position) for position in product(*counts)], np.float32).reshape(1, 1, *out)
    return (np.float32(np.prod(window.kernel)) / counted).astype(np.float32)


@LOWERINGS.lowers("GlobalAveragePool")
def global_average_pool(ctx: Context, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    ctx.set(node.outputs[0], ctx.mb.reduce_mean(x=x, axes=list(range(2, x.rank)), keep_dims=True, name=ctx.name(node)))


@LOWERINGS.lowers("GlobalMaxPool")
def global_max_pool(ctx: Context, node: ir.Node) -> None:
    x = ctx.input(node, 0)
    ctx.set(node.outputs[0], ctx.mb.reduce_max(x=x, axes=list(range(2, x.rank)), keep_dims=True, name=ctx.name(node)))
