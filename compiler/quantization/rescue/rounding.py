"""Second-order rounding: each weight is rounded so that the ones after it in the row can make up for its error.

For a row w, inputs X and H = X X' / n, columns are rounded one by one and the error of each is spread over those still free:

    q[i] = clip(rint(w[i] / s)); w[i:] -= (w[i] - q[i] s) / U[i, i] * U[i, i:],  U the upper Cholesky factor of H^-1

Source: E. Frantar et al., "GPTQ" (2023), algorithm 1, after "Optimal Brain Compression" (2022). X are the inputs as the quantized
model itself computes them, unfolded for convolutions, so what is minimised is the error of the layer in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.dataset import Dataset
from compiler.pruning.activations import stream
from compiler.pruning.unfold import unfold, window_of
from compiler.quantization.rescue.bias import with_corrected
from compiler.quantization.rescue.candidate import Bench, Candidate
from compiler.quantization.structure import constant_of, name_of
from runtimes.session import Array

DAMPING = 0.01  # of the mean diagonal, as in GPTQ
MOST_COLUMNS = 2304  # a Hessian of 42 MB, inverted in seconds; wider rows keep rounding to nearest
POSITIONS = 32  # output positions of a convolution taken from each sample
SAMPLES = 128

Matrices = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layer:
    """An int8 layer as ``groups`` matrices [groups, outputs, columns]; ``source``: its input in the quantized hub."""

    node: ir.Node
    source: str
    groups: int
    weight: Matrices


def round_second_order(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` with weights rounded by GPTQ, then that with corrected biases; nothing where no layer qualifies."""
    quantized = start.quantized().model
    layers = find_layers(start, quantized)
    if not layers:
        return
    hessians = gather(quantized, layers, bench.train, POSITIONS)
    overrides = dict(start.overrides)
    for layer in layers:
        name = name_of(layer.node)
        params = start.spec.constant(name, 1)
        assert params is not None
        scale = np.broadcast_to(params.scale.astype(np.float64), (layer.weight.shape[0] * layer.weight.shape[1],))
        codes = gptq(layer.weight, scale.reshape(layer.weight.shape[:2]), hessians[name], params.qmin, params.qmax)
        overrides[name, 1] = params.dequantize(restored(layer, codes))
    made = replace(start, overrides=overrides)
    detail = f"{len(layers)} layers"
    yield from with_corrected(detail, made, bench)


def find_layers(start: Candidate, quantized: ir.Model) -> list[Layer]:
    """Conv, Gemm and MatMul with a constant weight of at most MOST_COLUMNS columns, where they are int8."""
    inputs = {name_of(node): node.inputs[0] for node in quantized.graph if node.inputs}
    found = []
    for node in start.reference.graph:
        name = name_of(node)
        if not start.spec.nodes[name].precision.integer_activations or start.spec.constant(name, 1) is None:
            continue
        array = constant_of(node.inputs[1])
        weight = None if array is None else matrices(node, array)
        source = inputs[name]
        if weight is not None and weight.shape[2] <= MOST_COLUMNS and source is not None and source.name:
            found.append(Layer(node, source.name, len(weight), weight))
    return found


def matrices(node: ir.Node, array: Array) -> Matrices | None:
    """An array of the weight's shape as [groups, outputs per group, columns] float64; None for what is no layer of this kind."""
    wide = array.astype(np.float64)
    if node.op_type == "Conv":
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        return wide.reshape(groups, wide.shape[0] // groups, -1)
    if node.op_type == "Gemm":
        return (wide if _transposed(node) else wide.T)[np.newaxis]
    return wide.T[np.newaxis] if node.op_type == "MatMul" and wide.ndim == 2 else None


def _transposed(node: ir.Node) -> bool:
    return "transB" in node.attributes and bool(node.attributes["transB"].as_int())


def restored(layer: Layer, codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """From matrices back to the weight's own layout."""
    array = constant_of(layer.node.inputs[1])
    assert array is not None
    if layer.node.op_type == "Conv":
        return codes.reshape(array.shape)
    first: NDArray[np.int8] = codes[0]
    return first if layer.node.op_type == "Gemm" and _transposed(layer.node) else first.T


def gather(
    model: ir.Model, layers: Sequence[Layer], data: Dataset, positions: int, *, with_one: bool = False
) -> dict[str, Matrices]:
    """The mean of x x' per layer and group, [groups, columns, columns], over at most SAMPLES samples.

    ``with_one``: x has a last column of ones, the bias's input.
    """
    few = data.take(SAMPLES)
    sums: dict[str, Matrices] = {}
    rows: dict[str, int] = {}
    rng = np.random.default_rng(0)
    names = list(dict.fromkeys(layer.source for layer in layers))
    for values in stream(model, names, few.feeds):
        for layer in layers:
            name = name_of(layer.node)
            x = _rows(layer, values, rng, positions)  # [groups, rows, columns]
            if with_one:
                x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
            product = np.swapaxes(x, 1, 2) @ x
            sums[name] = sums[name] + product if name in sums else product
            rows[name] = rows.get(name, 0) + x.shape[1]
    return {name: total / rows[name] for name, total in sums.items()}


def _rows(layer: Layer, values: Mapping[str, Array], rng: np.random.Generator, positions: int) -> Matrices:
    array = values[layer.source]
    if layer.node.op_type != "Conv":
        return array.reshape(1, -1, array.shape[-1]).astype(np.float64)
    weight = constant_of(layer.node.inputs[1])
    shape = layer.node.outputs[0].shape
    assert weight is not None and shape is not None
    window = window_of(layer.node, weight.shape[2:], array.shape[2:])
    grid = int(np.prod(shape.numpy()[2:]))
    chosen = np.sort(rng.choice(grid, min(grid, positions), replace=False))
    rows = unfold(array, window, chosen)
    return np.moveaxis(rows.reshape(len(rows), layer.groups, -1), 1, 0).astype(np.float64)


def gptq(weight: Matrices, scale: NDArray[np.float64], hessian: Matrices, low: int, high: int) -> NDArray[np.int8]:
    """Codes [groups, outputs, columns] of ``weight`` under ``hessian`` [groups, columns, columns].

    ``scale``: [groups, outputs], or with one per column [groups, outputs, columns].

    A column that is never fed has no say: it is rounded to nearest and takes no error from the others.
    """
    columns = weight.shape[2]
    diagonal = np.einsum("gii->gi", hessian)
    damped = hessian.copy()
    ridge = DAMPING * np.maximum(diagonal.mean(axis=1), 1e-30)
    damped += ridge[:, None, None] * np.eye(columns)
    upper = np.swapaxes(np.linalg.cholesky(np.linalg.inv(damped)), 1, 2)
    left, codes = weight.copy(), np.empty(weight.shape, np.int8)
    steps = np.broadcast_to(scale if scale.ndim == 3 else scale[:, :, None], weight.shape)
    for i in range(columns):
        code = np.clip(np.rint(left[:, :, i] / steps[:, :, i]), low, high)
        codes[:, :, i] = code
        error = (left[:, :, i] - code * steps[:, :, i]) / upper[:, i, i, None]
        left[:, :, i + 1 :] -= error[:, :, None] * upper[:, None, i, i + 1 :]
    return codes
