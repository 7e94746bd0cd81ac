"""Convolutions: weights change from TFLite's channels-last to ONNX's channels-first order."""

from __future__ import annotations

from compiler.importers.tflite.builder import CHANNELS_FIRST, Builder, Unsupported
from compiler.importers.tflite.ops.windows import pads
from compiler.importers.tflite.reader import Operator
from compiler.importers.tflite.table import reads


@reads("CONV_2D")
def conv_2d(b: Builder, op: Operator) -> None:
    """Weights [O, kH, kW, I / groups]; the groups follow from the channels."""
    _, height, width, channels = b.shape(op.inputs[0])
    _, kernel_h, kernel_w, depth = b.shape(op.inputs[1])
    if depth == 0 or channels % depth:
        raise Unsupported(f"its filters read {depth} channels of {channels}")
    _convolve(b, op, (0, 3, 1, 2), (height, width), (kernel_h, kernel_w), channels // depth)


@reads("DEPTHWISE_CONV_2D")
def depthwise_conv_2d(b: Builder, op: Operator) -> None:
    """Weights [1, kH, kW, C * multiplier]: every channel is a group."""
    _, height, width, channels = b.shape(op.inputs[0])
    _, kernel_h, kernel_w, _ = b.shape(op.inputs[1])
    _convolve(b, op, (3, 0, 1, 2), (height, width), (kernel_h, kernel_w), channels)


def _convolve(
    b: Builder, op: Operator, axes: tuple[int, ...], sizes: tuple[int, int], kernel: tuple[int, int], groups: int
) -> None:
    strides = [op.option("strideH", 1), op.option("strideW", 1)]
    dilations = [op.option("dilationHFactor", 1), op.option("dilationWFactor", 1)]
    inputs = [b.read(op.inputs[0], CHANNELS_FIRST), b.weight(op.inputs[1], axes)]
    bias = op.input(2)
    if bias is not None:
        inputs.append(b.weight(bias))
    result = b.emit(
        "Conv",
        inputs,
        kernel_shape=list(kernel),
        strides=strides,
        dilations=dilations,
        group=groups,
        pads=pads(op, sizes, kernel, strides, dilations),
    )
    b.finish(op, result, CHANNELS_FIRST)


@reads("TRANSPOSE_CONV")
def transpose_conv(b: Builder, op: Operator) -> None:
    """Inputs: output shape, weights [O, kH, kW, I], data, bias. The padding is that of the convolution it transposes."""
    sizes = b.shape(op.outputs[0])[1:3]
    kernel = b.shape(op.inputs[1])[1:3]
    strides = [op.option("strideH", 1), op.option("strideW", 1)]
    before = pads(op, sizes, kernel, strides, (1, 1))[:2]
    inputs = [b.read(op.inputs[2], CHANNELS_FIRST), b.weight(op.inputs[1], (3, 0, 1, 2))]
    bias = op.input(3)
    if bias is not None:
        inputs.append(b.weight(bias))
    reach = [(i - 1) * s + k for i, s, k in zip(b.shape(op.inputs[2])[1:3], strides, kernel, strict=True)]
    after = [full - begin - size for full, begin, size in zip(reach, before, sizes, strict=True)]
    result = b.emit(
        "ConvTranspose",
        inputs,
        kernel_shape=list(kernel),
        strides=strides,
        pads=[*before, *(max(a, 0) for a in after)],
        output_padding=[max(-a, 0) for a in after],
    )
    b.finish(op, result, CHANNELS_FIRST)


@reads("CONV_3D")
def conv_3d(b: Builder, op: Operator) -> None:
    """Data [N, D, H, W, C], weights [kD, kH, kW, I / groups, O]."""
    *_, channels = b.shape(op.inputs[0])
    *kernel, depth, _ = b.shape(op.inputs[1])
    strides = [op.option(f"stride{axis}", 1) for axis in "DHW"]
    dilations = [op.option(f"dilation{axis}Factor", 1) for axis in "DHW"]
    inputs = [b.read(op.inputs[0], (0, 4, 1, 2, 3)), b.weight(op.inputs[1], (4, 3, 0, 1, 2))]
    bias = op.input(2)
    if bias is not None:
        inputs.append(b.weight(bias))
    result = b.emit(
        "Conv",
        inputs,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        group=channels // depth,
        pads=pads(op, b.shape(op.inputs[0])[1:4], kernel, strides, dilations),
    )
    b.finish(op, result, (0, 4, 1, 2, 3))
