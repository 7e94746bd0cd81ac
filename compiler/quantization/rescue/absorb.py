"""Bias absorption: what a channel always holds after its ReLU goes into the next layer's bias, so that less range is left to cover.

For channels whose activation never falls below c > 0, relu(W x + b) = relu(W x + b - c) + c, and the next layer takes the constant:

    b1' = b1 - c,  b2' = b2 + W2 c,  c = max(0, min(lowest seen, mean - 3 * deviation))

Source: M. Nagel et al. (2019), section 4.1.3, which knows mean and deviation from batch normalisation; here both are measured, and
the lowest value that was seen bounds c too, so that on the calibration samples the function stays what it was. Under Clip(0, 6)
only channels that stay below the ceiling move. HardSwish is curved where it matters, and a next layer that pads with zeros would
pad with c: such pairs are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.channels import ChannelObserver
from compiler.calibration.dataset import Dataset
from compiler.passes.edit import refold
from compiler.pruning.activations import stream
from compiler.quantization.rescue.equalise import CEILING, HEADROOM, Pair
from compiler.quantization.structure import constant_of, name_of, value_name

SAMPLES = 128
DEVIATIONS = 3.0
SHIFTED = ("Relu", "Clip", "LeakyRelu")  # the identity on what is positive and below the ceiling
CARRIES_CONSTANTS = ("GlobalAveragePool", "GlobalMaxPool", "Flatten", "Reshape", *SHIFTED)


def absorbed(model: ir.Model, pairs: Sequence[Pair], dataset: Dataset) -> tuple[ir.Model, int]:
    """A float hub that computes the same on ``dataset``, and how many channels were shifted; ``model`` is not modified."""
    result = model.clone()
    nodes = {name_of(node): node for node in result.graph}
    movable = [p for p in pairs if can_absorb(nodes[p.first], nodes[p.second])]
    if not movable:
        return model, 0
    seen = {pair.between: ChannelObserver() for pair in movable}
    for values in stream(model, list(seen), dataset.take(SAMPLES).feeds):
        for name, observer in seen.items():
            observer.update(values[name])
    shifted = 0
    for pair in movable:
        constants = always_there(seen[pair.between], pair.clipped)
        if constants.any():
            shifted += int((constants > 0).sum())
            _move(result.graph, nodes[pair.first], nodes[pair.second], pair, constants)
    return (result, shifted) if shifted else (model, 0)


def always_there(seen: ChannelObserver, clipped: bool) -> NDArray[np.float64]:
    """c [channels]."""
    constants = np.maximum(np.minimum(seen.low, seen.mean - DEVIATIONS * np.sqrt(seen.variance)), 0.0)
    return np.where(seen.high < CEILING * HEADROOM, constants, 0.0) if clipped else constants


def can_absorb(first: ir.Node, second: ir.Node) -> bool:
    """Whether a constant before the activation reaches every product of ``second``."""
    if second.op_type == "Conv" and (_pads(second) or "auto_pad" in second.attributes):
        return False
    value, activation = first.outputs[0], False
    while True:
        (use,) = value.uses()
        if use.node is second:
            return activation
        if use.node.op_type not in CARRIES_CONSTANTS:
            return False
        activation = activation or use.node.op_type in SHIFTED
        value = use.node.outputs[0]


def _pads(node: ir.Node) -> bool:
    return "pads" in node.attributes and any(node.attributes["pads"].as_ints())


def _move(graph: ir.Graph, first: ir.Node, second: ir.Node, pair: Pair, constants: NDArray[np.float64]) -> None:
    weight = constant_of(second.inputs[1])
    assert weight is not None
    products = _rows(second, weight.astype(np.float64), pair.depthwise)  # [outputs, inputs]
    gained = products[:, 0] * constants if pair.depthwise else products @ constants
    _add(graph, first, -constants)
    _add(graph, second, gained)


def _rows(node: ir.Node, weight: NDArray[np.float64], depthwise: bool) -> NDArray[np.float64]:
    """[outputs, inputs], summed over the kernel's places; one input where depthwise."""
    if node.op_type == "Gemm":
        return weight if "transB" in node.attributes and node.attributes["transB"].as_int() else weight.T
    taps = weight.reshape(len(weight), 1 if depthwise else weight.shape[1], -1)
    return np.asarray(taps.sum(axis=2), np.float64)


def _add(graph: ir.Graph, node: ir.Node, amount: NDArray[np.float64]) -> None:
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    old = constant_of(node.inputs[2])
    bias = np.zeros(len(amount)) if old is None else np.broadcast_to(old.astype(np.float64).reshape(-1), amount.shape)
    node.replace_input_with(2, refold(graph, node.inputs[2], bias + amount, f"{value_name(node.outputs[0])}/absorbed"))
