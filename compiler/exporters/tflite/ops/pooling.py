"""Pooling. The kernel's average leaves padding out of its count, as ONNX's count_include_pad = 0 does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import NONE, LoweringContext, Unsupported, name_of, shape_of
from compiler.exporters.tflite.ops.convolution import convolution_fields, finish
from compiler.exporters.tflite.ops.shape import stored
from compiler.exporters.tflite.ops.unary import need_type, note_island
from compiler.exporters.tflite.ops.windows import SAME, VALID, Window, pad_spatial, to_nhwc, window
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import Array, QuantParams, Tensor, per_tensor

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_OF_ONES = 16  # elements of a window whose ones are stored, per channel


def _window(node: ir.Node) -> Window:
    source, output = attr.first(node), node.outputs[0]
    need_type(source, ("float32",))
    sizes = shape_of(source)[2:]
    if len(sizes) not in (1, 2):
        raise Unsupported(f"it is {len(sizes)}-dimensional; one and two dimensions have a lowering")
    if set(attr.integers(node, "dilations") or [1]) != {1}:
        raise Unsupported("it is dilated, the kernel is not", "Use dilation 1.")
    kernel = attr.integers(node, "kernel_shape")
    assert kernel is not None, "kernel_shape is required"
    return window(node, sizes, kernel, shape_of(output)[2:])


def _pool(context: LoweringContext, code: str, x: Tensor, win: Window, padding: int, output: ir.Value) -> Tensor:
    shape = shape_of(output)
    result = context.writer.tensor(name_of(output), (shape[0], *win.outputs, shape[1]), x.dtype, x.quant)
    context.emit(
        code,
        [x],
        [result],
        "Pool2DOptions",
        padding=padding,
        strideH=win.strides[0],
        strideW=win.strides[1],
        filterHeight=win.kernel[0],
        filterWidth=win.kernel[1],
    )
    return result


def lowest(tensor: Tensor) -> float:
    """What never is the largest element of a window."""
    return -np.inf if tensor.quant is None else int(np.iinfo(tensor.dtype).min)


@lowers("MaxPool")
def max_pool(context: LoweringContext, node: ir.Node) -> None:
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise Unsupported("its second output, the indices, has no counterpart", "Use the values only.")
    source, win = attr.first(node), _window(node)
    # One scale through the kernel: exact on integers whatever follows.
    x = to_nhwc(context, stored(context, source, layout.channels_last(len(shape_of(source)))))
    padding = VALID if win.unpadded else SAME
    if not win.unpadded and not win.is_same:
        x, padding = pad_spatial(context, x, win.pads, lowest(x)), VALID
    finish(context, node.outputs[0], _pool(context, "MAX_POOL_2D", x, win, padding, node.outputs[0]))


@lowers("AveragePool")
def average_pool(context: LoweringContext, node: ir.Node) -> None:
    source, win, output = attr.first(node), _window(node), node.outputs[0]
    include = bool(attr.integer(node, "count_include_pad", 0))
    plain = win.unpadded or (win.is_same and not include)
    factor = None if plain else _window_over_count(node, win, include)
    quant = context.agreed([source], output) if factor is None else None
    x = to_nhwc(context, context.read(source, layout.channels_last(len(shape_of(source))), stored=quant is not None))
    if quant is not None and quant.bits == 8 and _sums_exactly(x, quant, win, plain):
        result = _ones(context, x if win.unpadded else pad_spatial(context, x, win.pads), win, output)
    elif plain:
        result = _pool(context, "AVERAGE_POOL_2D", x, win, VALID if win.unpadded else SAME, output)
    else:
        result = _pool(context, "AVERAGE_POOL_2D", pad_spatial(context, x, win.pads), win, VALID, output)
        result = result if factor is None else _recounted(context, result, factor)
    finish(context, output, result)
    note_island(context, node, [source], quant)


def _sums_exactly(x: Tensor, quant: QuantParams, win: Window, plain: bool) -> bool:
    """Whether a convolution with ones is the average: one scale, all elements of a window count, and few weights."""
    return x.quant == quant and (win.unpadded or not plain) and win.kernel[0] * win.kernel[1] <= LARGEST_OF_ONES


def _ones(context: LoweringContext, x: Tensor, win: Window, output: ir.Value) -> Tensor:
    """The average as a depthwise convolution with ones at a scale of 1 / elements, which rounds as onnxruntime does.

    LiteRT's AVERAGE_POOL_2D rounds halves away from zero, which a window of four meets every fourth time, and no delegate runs it.
    """
    assert x.quant is not None
    channels, share = x.shape[3], 1 / (win.kernel[0] * win.kernel[1])
    weight = context.writer.constant("ones", np.ones((1, *win.kernel, channels), np.int8), _along_channels(share))
    scale = np.float32(x.quant.scale[0]) * np.float32(share)
    bias = context.writer.constant("bias", np.zeros(channels, np.int32), per_tensor(float(scale), 0))
    shape = shape_of(output)
    result = context.writer.tensor(name_of(output), (shape[0], *win.outputs, channels), x.dtype, x.quant)
    fields = convolution_fields(win, VALID, NONE)
    context.emit(
        "DEPTHWISE_CONV_2D", [x, weight, bias], [result], "DepthwiseConv2DOptions", depthMultiplier=1, **fields
    )
    return result


def _along_channels(scale: float) -> QuantParams:
    return replace(per_tensor(scale, 0), axis=3)


def _window_over_count(node: ir.Node, win: Window, include: bool) -> Array | None:
    """[H, W] float32 factors for the average of a padded window, where ONNX counts fewer elements than it has; None if nowhere."""
    declared = _declared_pads(node, win) if include else ((0, 0), (0, 0))
    counts = np.outer(*(_counts(win, axis, declared[axis]) for axis in (0, 1)))
    factor: Array = (win.kernel[0] * win.kernel[1] / counts).astype(np.float32)
    return None if np.all(factor == 1) else factor


def _recounted(context: LoweringContext, averaged: Tensor, factor: Array) -> Tensor:
    result = context.temporary(averaged.shape, averaged)
    literal = context.literal(factor.reshape(1, *factor.shape, 1), "window_over_count")
    context.emit("MUL", [averaged, literal], [result], "MulOptions")
    return result


def _declared_pads(node: ir.Node, win: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pads that count: those of the attribute, not what ceil_mode adds at the end."""
    pads = attr.integers(node, "pads")
    if attr.text(node, "auto_pad", "NOTSET") not in ("NOTSET", "") or pads is None:
        return win.pads if pads is None and not attr.integer(node, "ceil_mode", 0) else ((0, 0), (0, 0))
    if len(pads) == 2:
        return (0, 0), (pads[0], pads[1])
    return (pads[0], pads[2]), (pads[1], pads[3])


def _counts(win: Window, axis: int, counted: tuple[int, int]) -> Array:
    """Per output position, how many elements of the window lie in the input or in pads that count."""
    first = np.arange(win.outputs[axis]) * win.strides[axis] - win.pads[axis][0]
    low = np.maximum(first, -counted[0])
    high = np.minimum(first + win.kernel[axis], win.sizes[axis] + counted[1])
    if np.any(high <= low):
        raise Unsupported("a window lies wholly in its padding", "Reduce the padding.")
    counts: Array = high - low
    return counts


@lowers("GlobalAveragePool", "GlobalMaxPool")
def global_pool(context: LoweringContext, node: ir.Node) -> None:
    source, output = attr.first(node), node.outputs[0]
    need_type(source, ("float32",))
    perm = context.perm(source) or layout.identity(len(shape_of(source)))
    axes = sorted(perm.index(axis) for axis in range(2, len(perm)))
    if node.op_type == "GlobalAveragePool":
        quant = context.agreed([source], output)
    else:
        quant = context.quant(source)
    x = context.read(source, perm, stored=quant is not None)
    result = context.produce(output, perm, quant)
    code = "MEAN" if node.op_type == "GlobalAveragePool" else "REDUCE_MAX"
    numbers = context.literal(np.asarray(axes, np.int32), "axes")
    context.emit(code, [x, numbers], [result], "ReducerOptions", keepDims=True)
