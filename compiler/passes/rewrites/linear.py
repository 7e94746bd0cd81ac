"""Operators with a weight and a bias, and how a per-channel scale and shift moves into them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.passes.edit import float_constant, input_of, integer, out, refold, replace, static_shape

LINEAR = ("Conv", "ConvTranspose", "Gemm")
CHANNEL_AXIS = 1  # of the output, for all three: Gemm's result is [rows, channels]


def out_channels(node: ir.Node) -> int:
    """Size of the output-channel axis. The weight must be a constant."""
    weight = static_shape(input_of(node, 1))
    assert weight is not None
    group = integer(node, "group", 1)
    match node.op_type:
        case "Conv":
            size = weight[0]
        case "ConvTranspose":
            size = weight[1] * group
        case _:
            size = weight[0 if integer(node, "transB", 0) else 1]
    return size


def linear_refusal(node: ir.Node) -> str | None:
    """Why nothing can be folded into ``node``."""
    weight = input_of(node, 1)
    if weight is None or float_constant(weight) is None:
        return "the weight is not a constant"
    if weight.dtype != ir.DataType.FLOAT:
        return "the weight is not float32"
    bias = input_of(node, 2)
    if bias is None:
        return None
    array = float_constant(bias)
    if array is None:
        return "the bias is not a constant"
    if node.op_type == "Gemm" and array.size not in (1, out_channels(node)):
        return "the bias differs from row to row"
    if node.op_type == "Gemm" and array.ndim == 2 and array.shape[0] != 1:
        return "the bias differs from row to row"
    return None


def fold_affine(
    graph: ir.Graph, node: ir.Node, tail: ir.Node, scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> None:
    """Replace ``node`` and ``tail`` by one node: y = scale * (W x + b) + shift = (scale W) x + (scale b + shift).

    Args:
        scale: [out_channels], float64. shift: the same.
        tail: the node whose output becomes the result.
    """
    weight, bias = input_of(node, 1), input_of(node, 2)
    kernel = float_constant(weight)
    assert kernel is not None
    old_bias = float_constant(bias)
    alpha, beta = _gemm_factors(node)
    shifted = shift if old_bias is None else beta * old_bias.reshape(-1) * scale + shift
    new_weight = refold(graph, weight, _scale_weight(node, kernel * alpha, scale), f"{out(tail).name}_weight")
    new_bias = refold(graph, bias, np.broadcast_to(shifted, scale.shape), f"{out(tail).name}_bias")
    attributes = {k: v for k, v in node.attributes.items() if k not in ("alpha", "beta")}
    fused = ir.node(node.op_type, [node.inputs[0], new_weight, new_bias], attributes)
    replace(graph, list(dict.fromkeys((node, tail))), [fused], at=tail)
    fused.name = node.name  # reports name the convolution, not the normalization behind it


def _gemm_factors(node: ir.Node) -> tuple[float, float]:
    factors = []
    for name in ("alpha", "beta"):
        attribute = node.attributes.get(name) if node.op_type == "Gemm" else None
        factors.append(attribute.as_float() if attribute is not None else 1.0)
    return factors[0], factors[1]


def _scale_weight(node: ir.Node, kernel: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    if node.op_type == "Conv":  # [out, in / group, *kernel]
        return kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))
    if node.op_type == "Gemm":
        return kernel * (scale[:, None] if integer(node, "transB", 0) else scale[None, :])
    # ConvTranspose: [in, out / group, *kernel]; the inputs of group g see output channels g*out/group onwards.
    group = integer(node, "group", 1)
    split = kernel.reshape(group, kernel.shape[0] // group, *kernel.shape[1:])
    factors = scale.reshape(group, 1, -1, *[1] * (kernel.ndim - 2))
    return (split * factors).reshape(kernel.shape)
