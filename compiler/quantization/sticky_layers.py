"""What holding on to codes with second-order compensation needs of a model's layers, gathered once for all attempts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.quantization.engine import Quantized
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.pursuit import Matrix, Problem
from compiler.quantization.rescue.bias import correctable, means, shift_bias
from compiler.quantization.rescue.candidate import Bench, Candidate
from compiler.quantization.rescue.rounding import POSITIONS, Layer, find_layers, gather, matrices, restored
from compiler.quantization.spec import QParams
from compiler.quantization.structure import name_of, value_name
from runtimes.session import Array

BIAS_PASSES = 6  # neighbours share a pass
BIAS_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Layers:
    """Int8 layers with a constant weight, by node name; ``hessians`` [groups, columns + 1, columns + 1], the last for the bias."""

    layers: Mapping[str, Layer]
    hessians: Mapping[str, Matrix]
    means: Mapping[str, NDArray[np.float64]]

    def restored(self, name: str, codes: Matrix) -> Array:
        """int8 codes in the weight's own layout."""
        return restored(self.layers[name], codes.astype(np.int8))


def gather_layers(fresh: Quantized, reference: ir.Model, options: QuantizeOptions, bench: Bench) -> Layers:
    """Inputs as ``fresh`` computes them, and what the float model's unbounded outputs are in the mean."""
    start = Candidate(reference, fresh.spec, fresh.calibration, options)
    layers = find_layers(start, fresh.model)
    hessians = gather(fresh.model, layers, bench.train, POSITIONS, with_one=True)
    wanted = means(reference, unbounded(start), bench.train.take(BIAS_SAMPLES))
    return Layers({name_of(layer.node): layer for layer in layers}, hessians, wanted)


def unbounded(one: Candidate) -> list[ir.Node]:
    """Layers without an activation of their own: few channels, which sum up what the layers before them did."""
    return [node for node in correctable(one) if one.spec.nodes[name_of(node)].fused_into is None]


def settle_means(start: Candidate, layers: Layers, bench: Bench) -> Candidate:
    """Give unbounded layers the biases that restore the float model's means: what was held on to errs in one direction."""
    few = bench.train.take(BIAS_SAMPLES)
    nodes, current = unbounded(start), start
    for chosen in np.array_split(np.arange(len(nodes)), min(BIAS_PASSES, len(nodes)) or 1):
        group = [nodes[i] for i in chosen]
        found = means(current.quantized().model, group, few) if group else {}
        for node in group:
            name = value_name(node.outputs[0])
            current = shift_bias(current, node, layers.means[name] - found[name])
    return current


def problem_of(
    node: ir.Node,
    hessian: Matrix,
    weight: tuple[Array, Array, QParams, Array],
    bias: tuple[Array, Array, QParams] | None,
) -> Problem:
    """One layer's weight (wanted, old codes, parameters, [channels] whose scale was kept) and bias (wanted, old codes, parameters).

    Old codes under a scale that was not kept are worth as much to send as the nearest ones, which then stand in for them.
    """
    wanted, old, params, kept = weight
    nearest = params.quantize(wanted)
    start = np.where(spread(kept, params, wanted.ndim), old, nearest)
    step = np.broadcast_to(spread(params.scale, params, wanted.ndim), wanted.shape)
    columns: list[Matrix] = []
    for array in (wanted, step, start, nearest):
        matrix = matrices(node, array)
        assert matrix is not None, f"{name_of(node)} is no layer that find_layers finds"
        columns.append(matrix)
    if bias is not None:
        value, codes, own = bias
        last = (value, np.broadcast_to(own.scale, value.shape), codes, own.quantize(value))
        shape = (*columns[0].shape[:2], 1)
        columns = [
            np.concatenate([a, b.astype(np.float64).reshape(shape)], 2) for a, b in zip(columns, last, strict=True)
        ]
    else:
        hessian = hessian[:, :-1, :-1]
    return Problem(columns[0], columns[1], columns[2], columns[3], hessian, bias is not None, params.qmax)


def rounding_noise(problem: Problem, output_step: float) -> float:
    """Squared error that quantizing afresh leaves at a layer's output: rounded weights, and the output's own rounding."""
    weights = problem.wanted.shape[2] - int(problem.with_bias)
    alone = replace(
        problem,
        wanted=problem.wanted[:, :, :weights],
        step=problem.step[:, :, :weights],
        hessian=problem.hessian[:, :weights, :weights],
    )
    outputs = problem.wanted.shape[0] * problem.wanted.shape[1]
    rounded = float(alone.error(problem.nearest[:, :, :weights]).sum())
    return rounded + float(outputs) * output_step**2 / 12


def spread(per_channel: Array, params: QParams, rank: int) -> Array:
    """[channels] shaped to broadcast along the quantized axis."""
    if params.axis is None:
        return per_channel.reshape(())
    return per_channel.reshape([-1 if axis == params.axis % rank else 1 for axis in range(rank)])
