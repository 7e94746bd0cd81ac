"""Activation functions with parameters, and Softmax."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import RELU, RELU6, LoweringContext, Unsupported, shape_of
from compiler.exporters.tflite.kernels import prescribed
from compiler.exporters.tflite.ops.binary import aligned
from compiler.exporters.tflite.ops.unary import (
    any_order,
    elementwise,
    integer_scalar,
    need_type,
    note_island,
    scalar,
)
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import QuantParams, Tensor, per_tensor

if TYPE_CHECKING:
    import onnx_ir as ir


@lowers("Relu")
def relu(context: LoweringContext, node: ir.Node) -> None:
    need_type(attr.first(node), ("float32",))
    _rectified(context, node, RELU)


def _rectified(context: LoweringContext, node: ir.Node, kind: int) -> None:
    """``kind``: the fused activation. In int8 a product with 1 clamps as well as RELU does, and delegates have it.

    LiteRT's own int8 RELU takes 9.7 ns per element on one AVX2 core, XNNPACK's product 0.2.
    """
    source, output = attr.first(node), node.outputs[0]
    quant = context.agreed([source], output)
    if quant is None or quant.bits != 8:
        elementwise(context, node, ("", "RELU", "RELU_N1_TO_1", "RELU6")[kind], integer=True)
        return
    perm = any_order(context, source)
    operands = [context.read(source, perm, stored=True), context.integer_one()]
    result = context.produce(output, perm, quant)
    context.emit("MUL", operands, [result], "MulOptions", fusedActivationFunction=kind)


@lowers("HardSwish")
def hard_swish(context: LoweringContext, node: ir.Node) -> None:
    """x * max(0, min(1, x/6 + 1/2)), the builtin's own definition. It has no int16 form, which takes three kernels that do.

    The int8 form computes in 16 bits, is off by one for up to 2 % of its codes, and no delegate runs it (4.2 ns per element on one
    AVX2 core, the three below 0.15 to 0.5). Where 3 is a whole number of steps of x, which the quantizer sees to
    (quantization/agreeing.py), x + 3 is a matter of codes, and the product rounds once.
    """
    source, output = attr.first(node), node.outputs[0]
    quant = context.agreed([source], output)
    if quant is not None and quant.bits == 8 and (steps := _whole_steps(context.quant(source), 3.0)):
        _exact_hard_swish(context, node, quant, steps)
        return
    if quant is None or quant.bits == 8:
        elementwise(context, node, "HARD_SWISH", integer=True)
        return
    perm = any_order(context, source)
    x = context.read(source, perm, stored=True)
    gate = _clamped(context, x, 3.0, 6.0)
    product = context.temporary(x.shape, x, replace(quant, scale=(6 * quant.scale[0],)))
    context.emit("MUL", [x, gate], [product], "MulOptions")
    sixth = integer_scalar(context, 1 / 6, quant.bits)
    context.emit("MUL", [product, sixth], [context.produce(output, perm, quant)], "MulOptions")


def _whole_steps(quant: QuantParams | None, number: float) -> int:
    """How many steps of ``quant`` are ``number``, if that is a whole number of an int8 code; else 0."""
    steps = 0.0 if quant is None else number / quant.scale[0]
    return round(steps) if steps <= 127 and abs(steps - round(steps)) < 1e-5 else 0


def _exact_hard_swish(context: LoweringContext, node: ir.Node, quant: QuantParams, steps: int) -> None:
    """x * (max(0, min(6, x + 3)) / 6), where 3 is ``steps`` of x: the division changes a scale and no code."""
    perm = any_order(context, attr.first(node))
    x = context.read(attr.first(node), perm, stored=True)
    assert x.quant is not None
    scale = x.quant.scale[0]
    three = context.writer.constant("three", np.full((1,), steps, np.int8), per_tensor(scale, 0))
    moved = context.temporary(x.shape, x, per_tensor(scale, -128))
    context.emit("ADD", [x, three], [moved], "AddOptions", fusedActivationFunction=RELU6)
    gate = context.temporary(x.shape, x, per_tensor(scale / 6, -128))
    context.emit("MUL", [moved, integer_scalar(context, 1 / 6, 8)], [gate], "MulOptions")
    context.emit("MUL", [x, gate], [context.produce(node.outputs[0], perm, quant)], "MulOptions")


def _clamped(context: LoweringContext, x: Tensor, shift: float, high: float) -> Tensor:
    """max(0, min(high, x + shift)) on integers: the output's own range does the clamping above."""
    quant = per_tensor(high / 255, -128) if x.dtype == np.int8 else per_tensor(high / 32767, 0, bits=16)
    result = context.temporary(x.shape, x, quant)
    wide = {} if x.dtype == np.int8 else {"potScaleInt16": False}
    operands = [x, integer_scalar(context, shift, quant.bits)]
    context.emit("ADD", operands, [result], "AddOptions", fusedActivationFunction=RELU, **wide)
    return result


def _gate(context: LoweringContext, x: Tensor, alpha: float, beta: float, quant: QuantParams) -> Tensor:
    """max(0, min(1 / alpha, x + beta / alpha)), in the output's own codes where they do the clamping.

    Then (x + beta / alpha) / (scale / alpha) = (alpha * x + beta) / scale: ADD rounds once, to the code of the result, and the
    product with alpha changes the scale alone. Through a scale of its own it would round twice, one step off every second time.
    """
    highest = quant.range()[1]
    sixth = bool(np.isclose(alpha, 1 / 6, rtol=1e-6))
    if highest > 1 + quant.scale[0] / 2 and not sixth:
        return _clamped(context, x, beta / alpha, 1 / alpha)
    result = context.temporary(x.shape, x, replace(quant, scale=(quant.scale[0] / alpha,)))
    wide = {} if x.dtype == np.int8 else {"potScaleInt16": False}
    operands = [x, integer_scalar(context, beta / alpha, quant.bits)]
    clamp = RELU6 if highest > 1 and sixth else RELU
    context.emit("ADD", operands, [result], "AddOptions", fusedActivationFunction=clamp, **wide)
    return result


@lowers("LeakyRelu")
def leaky_relu(context: LoweringContext, node: ir.Node) -> None:
    alpha = attr.real(node, "alpha", 0.01)
    elementwise(context, node, "LEAKY_RELU", integer=True, options="LeakyReluOptions", alpha=alpha)


@lowers("Gelu", since=20)
def gelu(context: LoweringContext, node: ir.Node) -> None:
    approximate = attr.text(node, "approximate", "none") == "tanh"
    elementwise(context, node, "GELU", integer=True, options="GeluOptions", approximate=approximate)


@lowers("Elu")
def elu(context: LoweringContext, node: ir.Node) -> None:
    """The builtin has alpha = 1; any other is relu(x) + alpha * min(elu(x), 0)."""
    alpha = attr.real(node, "alpha", 1.0)
    if alpha == 1.0:
        elementwise(context, node, "ELU", integer=True)
        return
    source = attr.first(node)
    perm = any_order(context, source)
    x = context.read(source, perm)
    positive, unit, negative, scaled = (context.temporary(x.shape, x) for _ in range(4))
    context.emit("RELU", [x], [positive])
    context.emit("ELU", [x], [unit])
    context.emit("MINIMUM", [unit, scalar(context, 0.0)], [negative])
    context.emit("MUL", [negative, scalar(context, alpha)], [scaled], "MulOptions")
    context.emit("ADD", [positive, scaled], [context.produce(node.outputs[0], perm)], "AddOptions")
    note_island(context, node, [source], None)


@lowers("HardSigmoid")
def hard_sigmoid(context: LoweringContext, node: ir.Node) -> None:
    """max(0, min(1, alpha * x + beta)); with alpha 1/6 and beta 1/2 it is relu6(x + 3) / 6, which fuses."""
    alpha, beta = attr.real(node, "alpha", 0.2), attr.real(node, "beta", 0.5)
    source = attr.first(node)
    perm = any_order(context, source)
    quant = context.agreed([source], node.outputs[0]) if alpha > 0 and beta > 0 else None
    x = context.read(source, perm, stored=quant is not None)
    if quant is not None:
        gate, factor = _gate(context, x, alpha, beta, quant), integer_scalar(context, alpha, quant.bits)
        context.emit("MUL", [gate, factor], [context.produce(node.outputs[0], perm, quant)], "MulOptions")
        return
    scaled, moved = context.temporary(x.shape, x), context.temporary(x.shape, x)
    if np.isclose(alpha, 1 / 6, rtol=1e-6) and beta == 0.5:
        context.emit("ADD", [x, scalar(context, 3.0)], [moved], "AddOptions", fusedActivationFunction=RELU6)
        result = context.produce(node.outputs[0], perm)
        context.emit("MUL", [moved, scalar(context, alpha)], [result], "MulOptions")
    else:
        context.emit("MUL", [x, scalar(context, alpha)], [scaled], "MulOptions")
        context.emit("ADD", [scaled, scalar(context, beta)], [moved], "AddOptions")
        low = context.temporary(x.shape, x)
        context.emit("MAXIMUM", [moved, scalar(context, 0.0)], [low])
        context.emit("MINIMUM", [low, scalar(context, 1.0)], [context.produce(node.outputs[0], perm)])
    note_island(context, node, [source], None)


@lowers("PRelu")
def prelu(context: LoweringContext, node: ir.Node) -> None:
    source, slope = attr.first(node), node.inputs[1]
    assert slope is not None
    need_type(source, ("float32",))
    perm = any_order(context, source)
    quant = context.agreed([source, slope], node.outputs[0])
    tensor = context.read(source, perm, stored=quant is not None)
    alpha = aligned(context, slope, perm, stored=quant is not None)
    context.emit("PRELU", [tensor, alpha], [context.produce(node.outputs[0], perm, quant)])
    note_island(context, node, [source], quant)


@lowers("Clip")
def clip(context: LoweringContext, node: ir.Node) -> None:
    source, output = attr.first(node), node.outputs[0]
    low, high = context.clip_bounds(node)
    kind = context.activation_kind(node)
    quant = context.agreed([source], output)
    if (
        quant is not None
        and low <= quant.range()[0] + quant.scale[0] / 2
        and high >= quant.range()[1] - quant.scale[0] / 2
    ):
        context.alias(output, source)  # saturation to the output's own range is the clip; QuantizeLinear requantizes
    elif kind is not None and (context.quant(source) is None or (quant is not None and (quant.bits, kind) != (16, 2))):
        need_type(source, ("float32",))
        _rectified(context, node, kind)
    else:
        _general_clip(context, node)
        note_island(context, node, [source], None)


def _general_clip(context: LoweringContext, node: ir.Node) -> None:
    source = attr.first(node)
    need_type(source, ("float32", "int32", "int64"))
    perm = any_order(context, source)
    x = context.read(source, perm)
    bounds = [("MAXIMUM", attr.operand(node, 1)), ("MINIMUM", attr.operand(node, 2))]
    present = [(code, value) for code, value in bounds if value is not None]
    if not present:
        context.alias(node.outputs[0], source)
        return
    for code, value in present[:-1]:
        part = context.temporary(x.shape, x)
        context.emit(code, [x, aligned(context, value, perm)], [part])
        x = part
    code, value = present[-1]
    context.emit(code, [x, aligned(context, value, perm)], [context.produce(node.outputs[0], perm)])


@lowers("Softmax", "LogSoftmax", since=13)
def softmax(context: LoweringContext, node: ir.Node) -> None:
    """The kernel works along the last stored axis."""
    source, output = attr.first(node), node.outputs[0]
    need_type(source, ("float32",))
    rank = len(shape_of(source))
    if rank == 0:
        raise Unsupported("its input is a scalar")
    perm = layout.last(any_order(context, source), attr.axis(node, rank, -1))
    quant = context.agreed([source], output) if node.op_type == "Softmax" else None
    tensor = context.read(source, perm, stored=quant is not None)
    result = context.produce(output, perm, quant and prescribed(node.op_type, quant))
    if node.op_type == "Softmax":
        context.emit("SOFTMAX", [tensor], [result], "SoftmaxOptions", beta=1.0)
    else:
        context.emit("LOG_SOFTMAX", [tensor], [result])
    note_island(context, node, [source], quant)
