"""Weights as integers, computation in float32: smaller files without calibration data.

int8: per output channel, scale = max|w| / 127. int4: per output channel, or per block of the reduction axis, the scale with the
least squared rounding error. A weight keeps eight bits where four cost more than they save: see ``_why_not_four``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.collect import Calibration
from compiler.calibration.dataset import Dataset
from compiler.quantization.engine import Quantized
from compiler.quantization.params import weight_params
from compiler.quantization.perform import perform
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.spec import ConstantQuant, NodeDecision, NodePrecision, QParams, QuantizationSpec, Role
from compiler.quantization.structure import constant_of, name_of, weight_axis
from runtimes.session import Array

# Smaller tensors cost more in scales and operators than they save.
FEWEST_ELEMENTS: Final = 256
# Four bits keep some 20 dB of a channel with normally distributed weights; much less says that outliers rule it.
LEAST_SQNR_DB: Final = 14.0
# A channel of so few weights (depthwise convolutions) has nothing to average its rounding errors over.
FEWEST_PER_CHANNEL: Final = 16
INT4_MAX: Final = 7
_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")


@dataclass(frozen=True, slots=True)
class LargeWeight:
    """``axis``: the output channels. ``reduced``: the axis that blocks cut, None where blocks make no sense."""

    node: ir.Node
    index: int
    array: Array
    axis: int | None
    reduced: int | None


def int8_weights(model: ir.Model, dataset: Dataset | None, options: QuantizeOptions) -> Quantized:
    """Every constant weight of at least FEWEST_ELEMENTS in int8."""
    return _quantized(model, options, 8)


def int4_weights(model: ir.Model, dataset: Dataset | None, options: QuantizeOptions) -> Quantized:
    """Weights in int4 where that keeps LEAST_SQNR_DB of them, else int8; with data, rounded by second order."""
    made = _quantized(model, options, 4)
    if dataset is None:
        return made
    from compiler.quantization.schemes.rounded import round_weights

    return round_weights(model, made, dataset)


def _quantized(model: ir.Model, options: QuantizeOptions, bits: int) -> Quantized:
    constants: list[ConstantQuant] = []
    decisions = {
        name_of(n): NodeDecision(n.op_type, NodePrecision.FLOAT32, "it has no large weight") for n in model.graph
    }
    for weight in large_weights(model, options):
        name = name_of(weight.node)
        if name in options.keep_float:
            decisions[name] = NodeDecision(weight.node.op_type, NodePrecision.FLOAT32, "kept in float by request")
            continue
        params, reason = _parameters(weight, options, bits)
        constants.append(ConstantQuant(name, weight.index, Role.WEIGHT, params))
        decisions[name] = NodeDecision(weight.node.op_type, NodePrecision.WEIGHTS, reason)
    spec = QuantizationSpec({}, tuple(constants), decisions, (), {"bits": bits, "options": options.to_json()})
    return Quantized(perform(model, spec), spec, Calibration({}, "none", 0, ""))


def large_weights(model: ir.Model, options: QuantizeOptions) -> Iterator[LargeWeight]:
    """The constant weights of at least FEWEST_ELEMENTS, in the graph's order."""
    for node in model.graph:
        if node.op_type not in _OPERATORS or len(node.inputs) < 2:
            continue
        index = 0 if node.op_type == "Gather" else 1
        array = constant_of(node.inputs[index])
        if array is None or array.dtype != np.float32 or array.size < FEWEST_ELEMENTS or array.ndim < 2:
            continue
        axis = (0 if node.op_type == "Gather" else weight_axis(node)) if options.per_channel else None
        reduced = 1 - axis if axis is not None and array.ndim == 2 and node.op_type != "Gather" else None
        yield LargeWeight(node, index, array, axis, reduced)


def _parameters(weight: LargeWeight, options: QuantizeOptions, bits: int) -> tuple[QParams, str]:
    eight = weight_params(weight.array, weight.axis, options.weights)
    if bits == 8:
        return eight, "int8 weights"
    why_not = _why_not_four(weight)
    if why_not:
        return eight, f"int8 weights: {why_not}"
    four = _four_bits(weight, options.block_size)
    kept = _sqnr_db(weight.array, four)
    if kept < LEAST_SQNR_DB:
        return eight, f"int8 weights: four bits keep {kept:.1f} dB, less than {LEAST_SQNR_DB:g}"
    return four, f"int4 weights, {kept:.1f} dB"


def _why_not_four(weight: LargeWeight) -> str:
    channels = weight.array.shape[weight.axis] if weight.axis is not None else 1
    per_channel = weight.array.size // channels
    if per_channel < FEWEST_PER_CHANNEL:
        return f"{per_channel} weights per channel are too few to share a rounding error"
    return ""


def _four_bits(weight: LargeWeight, block_size: int | None) -> QParams:
    if block_size and weight.reduced is not None and weight.array.shape[weight.reduced] % block_size == 0:
        return _blocked(weight.array, weight.reduced, block_size)
    axis = weight.axis
    rows = np.moveaxis(weight.array, axis, 0).reshape(weight.array.shape[axis], -1) if axis is not None else None
    scale = _least_squares(weight.array.reshape(1, -1) if rows is None else rows)
    return QParams("int4", scale, axis=axis, narrow=True)


def _blocked(array: Array, axis: int, size: int) -> QParams:
    """One scale per ``size`` neighbours along ``axis`` of a matrix, which ``size`` divides (Core ML has no short blocks)."""
    rows = np.moveaxis(array, axis, 1).reshape(-1, size)
    scale = _least_squares(rows).reshape(array.shape[1 - axis], -1)
    return QParams("int4", np.moveaxis(scale, 1, axis), axis=axis, narrow=True, block_size=size)


def _least_squares(rows: Array) -> NDArray[np.float32]:
    """Per row the scale with the least squared rounding error to [-7, 7]; a row of zeros gets the smallest useful one."""
    wide = rows.astype(np.float64)
    peak = np.abs(wide).max(axis=1)
    start = np.where(peak > 0, peak, peak.max() or 1.0) / INT4_MAX
    best, least = start, np.full(len(wide), np.inf)
    for share in np.linspace(1.0, 0.5, 51):
        scale = start * share
        error = ((np.clip(np.rint(wide / scale[:, None]), -INT4_MAX, INT4_MAX) * scale[:, None] - wide) ** 2).sum(1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best.astype(np.float32)


def _sqnr_db(array: Array, params: QParams) -> float:
    noise = params.dequantize(params.quantize(array)).astype(np.float64) - array
    power = float((array.astype(np.float64) ** 2).sum())
    return float(10 * np.log10(max(power, 1e-30) / max(float((noise**2).sum()), 1e-30)))
