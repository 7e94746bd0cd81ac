"""Cross-layer equalization: channels of neighbouring layers share their range fairly, and the function stays the same.

For two layers y = W2 relu(W1 x + b1) and positive s per channel, W1 / s, b1 / s and W2 * s give the same y, because
relu(s z) = s relu(z).
With s_i = sqrt(r1_i / r2_i) both have the range sqrt(r1_i r2_i) in channel i, r being the largest magnitude.
Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.1, equation 11.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from compiler.passes.edit import add_initializer, integer, only_used_by
from compiler.quantization.structure import constant_of, name_of
from runtimes.session import Array

ROUNDS = 3  # a depthwise layer has two neighbours, and each pair disturbs the one before
SMALLEST = 1e-8  # a channel whose weights are all zero keeps its scale


def equalize(model: ir.Model) -> tuple[ir.Model, int]:
    """A copy with equalized pairs of convolutions, and the number of pairs; activations between them change, outputs do not."""
    result = model.clone()
    pairs = list(_pairs(result.graph))
    for _ in range(ROUNDS):
        for first, second in pairs:
            _balance(result.graph, first, second)
    return result, len(pairs)


def _pairs(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Convolutions whose one reader, past at most one Relu, is a convolution. Clip(0, 6) is not homogeneous and ends a chain."""
    for node in graph:
        if not _is_conv(node):
            continue
        reader = _only_reader(node)
        if reader is not None and reader.op_type == "Relu":
            reader = _only_reader(reader)
        if reader is not None and _is_conv(reader) and (integer(reader, "group", 1) == 1 or _is_depthwise(reader)):
            yield node, reader


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and only_used_by(node.outputs[0], uses[0].node) else None


def _is_conv(node: ir.Node) -> bool:
    weight = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    bias_fits = len(node.inputs) < 3 or node.inputs[2] is None or constant_of(node.inputs[2]) is not None
    return node.op_type == "Conv" and node.domain == "" and weight is not None and bias_fits


def _is_depthwise(node: ir.Node) -> bool:
    weight = constant_of(node.inputs[1])
    return weight is not None and weight.shape[1] == 1 and integer(node, "group", 1) == weight.shape[0]


def _balance(graph: ir.Graph, first: ir.Node, second: ir.Node) -> None:
    w1, w2 = constant_of(first.inputs[1]), constant_of(second.inputs[1])
    assert w1 is not None and w2 is not None
    depthwise = _is_depthwise(second)
    r1 = np.abs(w1).reshape(len(w1), -1).max(axis=1)
    by_input = w2 if depthwise else np.moveaxis(w2, 1, 0)
    r2 = np.abs(by_input).reshape(len(by_input), -1).max(axis=1)
    if len(r1) != len(r2):  # a depthwise layer that multiplies its channels
        return
    scale = np.where((r1 > SMALLEST) & (r2 > SMALLEST), np.sqrt(r1 / np.maximum(r2, SMALLEST)), 1.0)
    column = scale.reshape(-1, *([1] * (w1.ndim - 1)))
    _replace(graph, first, 1, w1 / column)
    bias = constant_of(first.inputs[2]) if len(first.inputs) > 2 else None
    if bias is not None:
        _replace(graph, first, 2, bias / scale)
    row = scale.reshape(-1, *([1] * (w2.ndim - 1))) if depthwise else scale.reshape(1, -1, *([1] * (w2.ndim - 2)))
    _replace(graph, second, 1, w2 * row)


def _replace(graph: ir.Graph, node: ir.Node, position: int, array: Array) -> None:
    fresh = add_initializer(graph, f"{name_of(node)}/equalized_{position}", array.astype(np.float32))
    old = node.inputs[position]
    node.replace_input_with(position, fresh)
    if old is not None and old.name in graph.initializers and not old.uses():
        graph.initializers.pop(str(old.name))
