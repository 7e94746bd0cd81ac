"""Empirical bias correction, layer after layer.

Rounding shifts the mean of a layer's output. Per channel, b += E[float output] - E[quantized output], measured on calibration
samples with all earlier layers already corrected. Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization
and Bias Correction" (2019), section 4.2 and appendix D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.dataset import Dataset
from compiler.pruning.activations import stream
from compiler.quantization.params import bias_params
from compiler.quantization.rescue.candidate import Bench, Candidate
from compiler.quantization.spec import ConstantQuant, Role
from compiler.quantization.structure import constant_of, name_of, value_name
from runtimes.session import Array

BIASED = ("Conv", "ConvTranspose", "Gemm")  # MatMul has no bias input
MOST_PASSES = 16  # neighbouring layers share a pass in deep nets, which bounds the time
SAMPLES = 64


def correct_biases(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` with corrected biases; nothing where no int8 node has a bias input."""
    nodes = correctable(start)
    if not nodes:
        return
    few = bench.train.take(SAMPLES)
    wanted = means(start.reference, nodes, few)
    current = start
    for group in np.array_split(np.arange(len(nodes)), min(MOST_PASSES, len(nodes))):
        chosen = [nodes[i] for i in group]
        found = means(current.quantized().model, chosen, few)
        for node in chosen:
            name = value_name(node.outputs[0])
            current = shift_bias(current, node, wanted[name] - found[name])
    yield f"{len(nodes)} layers, {few.count} samples", current


def with_corrected(detail: str, made: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``made``, then ``made`` with corrected biases: what a rung that changes weights or ranges offers."""
    yield detail, made
    for more, corrected in correct_biases(made, bench):
        yield f"{detail}, biases of {more}", corrected


def correctable(one: Candidate) -> list[ir.Node]:
    """int8 nodes of BIASED in graph order."""
    decisions = one.spec.nodes
    return [
        node
        for node in one.reference.graph
        if node.op_type in BIASED and decisions[name_of(node)].precision.integer_activations
    ]


def means(model: ir.Model, nodes: Sequence[ir.Node], dataset: Dataset) -> dict[str, NDArray[np.float64]]:
    """Mean per channel (axis 1) of each node's output, by the output's name; [channels] float64."""
    names = [value_name(node.outputs[0]) for node in nodes]
    sums: dict[str, NDArray[np.float64]] = {}
    batches = 0
    for values in stream(model, names, dataset.feeds):
        batches += 1
        for name in names:
            array = values[name].astype(np.float64)
            mean = array.mean(axis=tuple(a for a in range(array.ndim) if a != 1))
            sums[name] = sums.get(name, 0.0) + mean
    return {name: total / batches for name, total in sums.items()}


def shift_bias(one: Candidate, node: ir.Node, delta: NDArray[np.float64]) -> Candidate:
    """Add ``delta`` [channels] to the node's bias, which is made where there was none."""
    name = name_of(node)
    bias = current_bias(one, node, len(delta)) + delta
    spec = one.spec
    if spec.constant(name, 2) is None:
        weight, source = spec.constant(name, 1), node.inputs[0]
        assert weight is not None and source is not None
        scale_in = float(spec.seen(name, value_name(source)).scale[0])
        made = ConstantQuant(name, 2, Role.BIAS, bias_params(scale_in, weight))
        spec = replace(spec, constants=(*spec.constants, made))
    return replace(one, spec=spec, overrides={**one.overrides, (name, 2): bias.astype(np.float32)})


def current_bias(one: Candidate, node: ir.Node, channels: int) -> NDArray[np.float64]:
    """[channels] float64; zeros where the node has none."""
    array: Array | None = one.overrides.get((name_of(node), 2))
    if array is None and len(node.inputs) > 2:
        array = constant_of(node.inputs[2])
    if array is None:
        return np.zeros(channels)
    return np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float64)
