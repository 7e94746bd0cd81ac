"""Conv and ConvTranspose, one- and two-dimensional.

Source: LiteRT kernels conv.cc, depthwise_conv.cc, transpose_conv.cc: filters are [O, H, W, I / groups], depthwise
[1, H, W, O], transposed [O, H, W, I]; per-channel scales lie on axis 0, depthwise on axis 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import NONE, RELU6, LoweringContext, Unsupported, dtype_of, name_of, shape_of
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.ops.unary import note_island, scalar
from compiler.exporters.tflite.ops.windows import SAME, VALID, Window, pad_spatial, to_nhwc, window
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import QuantParams, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir


def weight_fits(context: LoweringContext, value: ir.Value, axis: int) -> bool:
    """Whether an int8 kernel takes this weight: symmetric int8 constant, per tensor or per channel on hub axis ``axis``."""
    constant = context.quantized_constant(value)
    if constant is None or constant.data.dtype != np.int8 or not constant.quant.symmetric or constant.quant.block:
        return False
    return constant.quant.per_tensor or constant.quant.axis == axis


def bias_tensor(
    context: LoweringContext, value: ir.Value | None, channels: int, source: QuantParams | None, weight: Tensor
) -> Tensor:
    """The bias [channels]: float32, or integers with scale = s_input * s_weight when ``source`` is given; zeros if absent."""
    if source is None:
        if value is None:
            return context.literal(np.zeros(channels, np.float32), "bias")
        return context.read(value, (0,))
    assert weight.quant is not None
    scale = np.float32(source.scale[0]) * np.asarray(weight.quant.scale, np.float32)
    quant = QuantParams(tuple(float(s) for s in scale), (0,) * scale.size, 0)
    dtype = np.int32 if source.bits == 8 else np.int64  # the 16x8 kernels accumulate in 64 bits
    quantized = context.quantized_constant(value)
    if quantized is not None and quantized.data.dtype == np.int32 and np.allclose(quantized.quant.scale, scale, 1e-6):
        return context.writer.constant("bias", quantized.data.astype(dtype), quant)
    real = np.zeros(channels) if value is None else context.required_constant(value, "bias").astype(np.float64)
    data = np.clip(np.rint(real / scale), -(2**31), 2**31 - 1).astype(dtype)
    return context.writer.constant("bias", data, quant)


def _spatial_filter(tensor: Tensor, context: LoweringContext) -> Tensor:
    if len(tensor.shape) == 4:
        return tensor
    outer, width, inner = tensor.shape
    return context.reshape(tensor, (outer, 1, width, inner))


@lowers("Conv")
def conv(context: LoweringContext, node: ir.Node) -> None:
    source, weight = attr.first(node), node.inputs[1]
    assert weight is not None
    shape, kernel = shape_of(source), shape_of(weight)
    _check_rank(shape, source)
    group = attr.integer(node, "group", 1)
    depthwise = group > 1 and group == shape[1]
    activation, output = context.fused_activation(node.outputs[0])
    quant = context.agreed([source], output) if weight_fits(context, weight, 0) else None
    if quant is not None and not _constant_or_absent(context, attr.operand(node, 2)):
        quant = None
    out_shape = shape_of(output)
    win = window(node, shape[2:], kernel[2:], out_shape[2:])
    x = to_nhwc(context, context.read(source, layout.channels_last(len(shape)), stored=quant is not None))
    order = (1, *range(2, len(shape)), 0) if depthwise else layout.channels_last(len(shape))
    filters = _filters(context, weight, order, quant is not None or context.hybrid(weight, 0))
    gate = _gate(context, node) if quant is None and activation == NONE else None
    if gate is None:
        bias = bias_tensor(context, attr.operand(node, 2), kernel[0], x.quant if quant else None, filters)
    else:
        bias, activation = _raised_bias(context, attr.operand(node, 2), kernel[0]), RELU6
    x, padding = _padded(context, x, win)
    fields: dict[str, Any] = convolution_fields(win, padding, activation)
    if depthwise:
        fields["depthMultiplier"] = kernel[0] // group
    result = _nhwc_output(context, output, win, quant)
    code, options = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
    context.emit(code, [x, filters, bias], [result], options, **fields)
    if gate is None:
        finish(context, output, result)
    else:
        _finish_gate(context, gate, result)
    if quant is None and context.agreed([source], output) is not None:
        note_island(context, node, [source], None)
        context.note(f"Conv {node.name!r} runs in float: its weight or bias has no int8 form")


def _gate(context: LoweringContext, node: ir.Node) -> ir.Node | None:
    """The HardSigmoid relu6(x + 3) / 6 that alone reads the convolution, which can then add the 3 with its bias."""
    value = node.outputs[0]
    reader = context.only_reader(value)
    if reader is None or reader.op_type != "HardSigmoid" or not _constant_or_absent(context, attr.operand(node, 2)):
        return None
    alpha, beta = attr.real(reader, "alpha", 0.2), attr.real(reader, "beta", 0.5)
    return reader if np.isclose(alpha, 1 / 6, rtol=1e-6) and beta == 0.5 else None


def _raised_bias(context: LoweringContext, value: ir.Value | None, channels: int) -> Tensor:
    bias = np.zeros(channels, np.float32) if value is None else context.required_constant(value, "bias")
    return context.literal(bias + np.float32(3), "bias")


def _finish_gate(context: LoweringContext, gate: ir.Node, six_times: Tensor) -> None:
    """Bind ``six_times`` / 6 to what the HardSigmoid computes."""
    output = gate.outputs[0]
    context.skipped.add(gate.name or "")
    context.writer.rename(six_times, f"{name_of(output)}/six_times")
    result = context.writer.tensor(name_of(output), six_times.shape, six_times.dtype)
    context.emit("MUL", [six_times, scalar(context, 1 / 6)], [result], "MulOptions")
    finish(context, output, result)


def _constant_or_absent(context: LoweringContext, value: ir.Value | None) -> bool:
    return value is None or context.is_constant(value)


def _check_rank(shape: tuple[int, ...], source: ir.Value) -> None:
    if len(shape) not in (3, 4):
        raise Unsupported(f"it is {len(shape) - 2}-dimensional; one and two dimensions have a lowering")
    if dtype_of(source) != np.float32:
        raise Unsupported(f"its type is {dtype_of(source)}", "Use float32.")


def _filters(context: LoweringContext, weight: ir.Value, order: Perm, stored: bool) -> Tensor:
    return _spatial_filter(context.read(weight, order, stored=stored), context)


def _padded(context: LoweringContext, x: Tensor, win: Window) -> tuple[Tensor, int]:
    if win.unpadded:
        return x, VALID
    if win.is_same:
        return x, SAME
    return pad_spatial(context, x, win.pads), VALID


def convolution_fields(win: Window, padding: int, activation: int) -> dict[str, Any]:
    return {
        "padding": padding,
        "strideH": win.strides[0],
        "strideW": win.strides[1],
        "dilationHFactor": win.dilations[0],
        "dilationWFactor": win.dilations[1],
        "fusedActivationFunction": activation,
    }


def _nhwc_output(context: LoweringContext, output: ir.Value, win: Window, quant: QuantParams | None) -> Tensor:
    """An NHWC tensor for ``output``; ``finish`` binds it."""
    shape = shape_of(output)
    dtype = quant.dtype if quant is not None else np.dtype(np.float32)
    return context.writer.tensor(name_of(output), (shape[0], *win.outputs, shape[1]), dtype, quant)


def finish(context: LoweringContext, output: ir.Value, tensor: Tensor) -> None:
    """Bind an NHWC tensor to ``output``, dropping the height of one-dimensional operators."""
    shape = shape_of(output)
    perm = layout.channels_last(len(shape))
    context.bind(output, context.reshape(tensor, layout.permuted(shape, perm)), perm)


@lowers("ConvTranspose")
def conv_transpose(context: LoweringContext, node: ir.Node) -> None:
    """VALID gives the full result, which is cropped by ONNX's pads; SAME does both where it matches."""
    source, weight = attr.first(node), node.inputs[1]
    assert weight is not None
    shape, kernel, output = shape_of(source), shape_of(weight), node.outputs[0]
    _check_rank(shape, source)
    rank = len(shape) - 2
    if attr.integer(node, "group", 1) != 1:
        raise Unsupported("it has groups, the kernel has none", "Use one group, or resize and convolve.")
    if set(attr.integers(node, "dilations") or [1]) != {1}:
        raise Unsupported("it is dilated, the kernel is not", "Use dilation 1.")
    strides = attr.integers(node, "strides") or [1] * rank
    extra = attr.integers(node, "output_padding") or [0] * rank
    full = [(shape[2 + a] - 1) * strides[a] + kernel[2 + a] + extra[a] for a in range(rank)]
    begins = _crop(node, full, shape_of(output)[2:])
    usable = weight_fits(context, weight, 1) and _constant_or_absent(context, attr.operand(node, 2))
    quant = context.agreed([source], output) if usable else None
    x = to_nhwc(context, context.read(source, layout.channels_last(len(shape)), stored=quant is not None))
    filters = _filters(context, weight, (1, *range(2, rank + 2), 0), quant is not None)
    bias = bias_tensor(context, attr.operand(node, 2), kernel[1], x.quant if quant else None, filters)
    lead = [1] * (2 - rank)
    full_shape = (shape[0], *lead, *full, kernel[1])
    wanted = (shape[0], *lead, *shape_of(output)[2:], kernel[1])
    result = context.writer.tensor(name_of(output), full_shape, x.dtype, quant)
    sizes = context.literal(np.asarray(full_shape, np.int32), "output_shape")
    stride_h, stride_w = [*lead, *strides]
    context.emit(
        "TRANSPOSE_CONV",
        [sizes, filters, x, bias],
        [result],
        "TransposeConvOptions",
        padding=VALID,
        strideH=stride_h,
        strideW=stride_w,
    )
    if wanted != full_shape:
        result = _cropped(context, result, [0, *([0] * len(lead)), *begins, 0], wanted)
    finish(context, output, result)
    note_island(context, node, [source], quant)


def _crop(node: ir.Node, full: list[int], wanted: tuple[int, ...]) -> list[int]:
    """Where the output begins in the full result; ``full - wanted`` is the total padding."""
    mode, rank = attr.text(node, "auto_pad", "NOTSET"), len(full)
    totals = [full[a] - wanted[a] for a in range(rank)]
    if min(totals) < 0:
        raise Unsupported("its output is larger than the full convolution", "Leave out output_shape.")
    if mode in ("SAME_UPPER", "SAME_LOWER") or node.attributes.get("output_shape") is not None:
        return [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals]
    return (attr.integers(node, "pads") or [0] * (2 * rank))[:rank] if mode == "NOTSET" else [0] * rank


def _cropped(context: LoweringContext, tensor: Tensor, begins: list[int], shape: tuple[int, ...]) -> Tensor:
    result = context.temporary(shape, tensor)
    arguments = [context.literal(np.asarray(v, np.int32), "crop") for v in (begins, shape)]
    context.emit("SLICE", [tensor, *arguments], [result], "SliceOptions")
    return result
