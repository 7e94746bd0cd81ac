"""Planning: from a model's structure and its calibrated ranges to the quantization spec. Nothing is modified."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.calibration.collect import Calibration
from compiler.calibration.observers import Range
from compiler.errors import DataError
from compiler.quantization.agreeing import agreeing
from compiler.quantization.compression import Compression
from compiler.quantization.mixed import unlike_concats
from compiler.quantization.params import (
    bias_params,
    constant_params,
    make_room_for_bias,
    weight_params,
)
from compiler.quantization.rules import FIXED_INT16, RULES, Kind
from compiler.quantization.spec import (
    ConstantQuant,
    NodeDecision,
    NodePrecision,
    QParams,
    QuantizationSpec,
    Role,
)
from compiler.quantization.structure import (
    Structure,
    analyse,
    constant_of,
    data_inputs,
    name_of,
    value_name,
    weight_axis,
)
from compiler.quantization.ties import Ties
from compiler.quantization.wide import conversions, widen
from runtimes.session import Array


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How to quantize.

    Args:
        observer: a name in calibration.observers.OBSERVERS. On kws (500 samples) mse came closest
            to the float model: 29.8 dB and 99.6 % agreement, against 29.6 / 99.2 of percentile and 26.5 / 99.2 of min-max.
        activations: "int8" (asymmetric) or "int16" (symmetric).
        weights: a name in params.WEIGHT_METHODS. On kws "mse" brought nothing that "max-abs" does not.
        per_channel: one weight scale per output channel, else per tensor.
        keep_float: names of nodes to leave in float.
        block_size: int4 weights of matrices get a scale per so many inputs, else per output channel.
        compression: of weights that become sparse or take their values from a table.
        wide: names of values to hold in int16 while the rest is int8 (compiler/quantization/wide.py).
        split_outputs: leave final concatenations of unlike ranges in float (compiler/quantization/mixed.py).
    """

    observer: str = "mse"
    weights: str = "max-abs"
    activations: str = "int8"
    per_channel: bool = True
    keep_float: tuple[str, ...] = ()
    block_size: int | None = None
    compression: Compression = field(default_factory=Compression)
    wide: tuple[str, ...] = ()
    split_outputs: bool = True

    def to_json(self) -> dict[str, Any]:
        """For a spec's provenance: JSON types only."""
        return {**asdict(self), "keep_float": sorted(self.keep_float), "wide": sorted(self.wide)}


def plan(model: ir.Model, calibration: Calibration, options: QuantizeOptions | None = None) -> QuantizationSpec:
    """Make all decisions.

    Args:
        model: a float hub.
        calibration: ranges of (at least) the activations that ``structure.analyse`` names.

    Raises:
        DataError: the calibration lacks an activation, so it was made for another model.
    """
    options = options or QuantizeOptions()
    structure = planned_structure(model, calibration, options)
    notes: list[str] = []
    ties = planned_ties(model, structure, calibration, options, notes)
    widening = widen(model, structure, ties, options.wide)
    activations = {
        name: ties.params(name, "int16" if name in widening.values else None) for name in structure.activations
    }
    activations = agreeing(model, structure, ties, activations)
    decisions = {name: _widened(d, name in widening.nodes, options) for name, d in structure.decisions.items()}
    spec = QuantizationSpec(
        activations, (), decisions, conversions=conversions(model, structure, activations, widening)
    )
    constants: list[ConstantQuant] = []
    for node in model.graph:
        if structure.is_int8(node):
            weighted = RULES[node.op_type].kind is Kind.WEIGHTED
            constants += _weighted(node, spec, options, notes) if weighted else _operands(node, spec)
    provenance: dict[str, Any] = {
        "calibration": {
            "observer": calibration.observer,
            "samples": calibration.samples,
            "dataset_sha256": calibration.dataset_sha256,
        },
        "options": options.to_json(),
    }
    return replace(spec, constants=tuple(constants), notes=tuple(notes), provenance=provenance)


def _widened(decision: NodeDecision, wide: bool, options: QuantizeOptions) -> NodeDecision:
    integer = decision.precision is NodePrecision.INT8
    if integer and options.activations == "int16":
        return replace(decision, precision=NodePrecision.INT16X8)
    if integer and wide:
        return replace(decision, precision=NodePrecision.INT16X8, reason="touches a value that eight bits do not carry")
    return decision


def planned_structure(model: ir.Model, calibration: Calibration, options: QuantizeOptions) -> Structure:
    """What becomes int8, now that ranges are known. Raises DataError."""
    structure = analyse(model, options.keep_float, options.activations)
    unlike = unlike_concats(model, structure, calibration.ranges) if options.split_outputs else {}
    return analyse(model, options.keep_float, options.activations, unlike) if unlike else structure


def planned_ties(
    model: ir.Model,
    structure: Structure,
    calibration: Calibration,
    options: QuantizeOptions,
    notes: list[str] | None = None,
) -> Ties:
    """The activations' ranges, and which of them share one. Raises DataError where the calibration lacks one."""
    notes, dtype = [] if notes is None else notes, options.activations
    missing = [name for name in structure.activations if name not in calibration.ranges]
    if missing:
        raise DataError(
            f"The calibration lacks {len(missing)} activation(s) of the model, first {missing[0]!r}.",
            remedy="Calibrate again with this very model.",
        )
    ties = Ties({name: calibration.ranges[name] for name in structure.activations}, dtype)
    for node in model.graph:
        if structure.is_int8(node) and RULES[node.op_type].fixed is not None:
            scale, zero_point = RULES[node.op_type].fixed or (0.0, 0)
            if dtype == "int16":
                scale, zero_point = FIXED_INT16
            ties.fix(value_name(node.outputs[0]), QParams(dtype, np.array([scale], np.float32), zero_point))
    for node in model.graph:
        if structure.is_int8(node) and RULES[node.op_type].kind is Kind.SAME_SCALE:
            _tie(node, ties, notes)
    return ties


def _tie(node: ir.Node, ties: Ties, notes: list[str]) -> None:
    """Bind data inputs and outputs of a same-scale node together, constants included."""
    output = value_name(node.outputs[0])
    for _, value in data_inputs(node):
        constant = constant_of(value)
        if constant is not None:
            ties.widen(output, _range(constant))
    partners = [value_name(v) for _, v in data_inputs(node) if constant_of(v) is None]
    partners += [value_name(v) for v in node.outputs[1:] if v.name]
    for partner in partners:
        refusal = ties.bind(output, partner)
        if refusal:
            notes.append(f"{node.op_type} {node.name}: {partner} is requantized at its boundary, because {refusal}")


def _range(constant: Array) -> Range:
    low, high = float(constant.min(initial=0.0)), float(constant.max(initial=0.0))
    return Range(low, high, low, high)


def _weighted(node: ir.Node, spec: QuantizationSpec, options: QuantizeOptions, notes: list[str]) -> list[ConstantQuant]:
    """Weight and bias of Conv, ConvTranspose, Gemm; constant factors of MatMul on either side."""
    name = name_of(node)
    weight = constant_of(node.inputs[1])
    if weight is None:  # MatMul of two activations, or with a constant on the left
        left = constant_of(node.inputs[0])
        return [] if left is None else [ConstantQuant(name, 0, Role.WEIGHT, weight_params(left, None, options.weights))]
    axis = weight_axis(node) if options.per_channel else None
    params = weight_params(weight, axis, options.weights)
    source = node.inputs[0]
    assert source is not None
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is None:
        return [ConstantQuant(name, 1, Role.WEIGHT, params)]
    scale_in = float(spec.seen(name, value_name(source)).scale[0])
    channels = len(params.scale) if params.axis is not None else bias.size
    params, raised = make_room_for_bias(np.broadcast_to(bias.reshape(-1), (channels,)), scale_in, params)
    if raised:
        notes.append(
            f"{node.op_type} {name}: weight scale raised on {len(raised)} of {len(params.scale)} channels so that the bias "
            f"fits int32 (first: {raised[0]})"
        )
    return [
        ConstantQuant(name, 1, Role.WEIGHT, params),
        ConstantQuant(name, 2, Role.BIAS, bias_params(scale_in, params)),
    ]


def _operands(node: ir.Node, spec: QuantizationSpec) -> list[ConstantQuant]:
    """Constant data inputs of element-wise nodes (own scale) and of same-scale nodes (the shared one)."""
    shared = RULES[node.op_type].kind is Kind.SAME_SCALE
    output = spec.seen(name_of(node), value_name(node.outputs[0])) if node.outputs[0].name in spec.activations else None
    wide = spec.nodes[name_of(node)].precision is NodePrecision.INT16X8
    found = []
    for index, value in data_inputs(node):
        constant = constant_of(value)
        if constant is not None:
            params = output if shared and output else constant_params(constant, "int16" if wide else "int8")
            found.append(ConstantQuant(name_of(node), index, Role.OPERAND, params))
    return found
