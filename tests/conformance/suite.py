"""All of ONNX's backend node tests as cases for an exporter: what is frozen, what no edge format can represent.

The tests come from the installed onnx package. A case's model goes through the importer, as a source of `edgewright build` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]

# Inputs that real models give as constants (weights, shapes, axes, bounds), by operator: a runtime value would change shapes, or
# is a parameter of a trained layer. All other inputs are fed at run time.
FROZEN: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "Gemm", "PRelu", "DeformConv"), (1, 2, 3)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3, 4, 7)),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"), (1, 2)),
    "BatchNormalization": (1, 2, 3, 4),
    "QLinearConv": (1, 2, 3, 4, 5, 6, 7, 8),
    "QLinearMatMul": (1, 2, 3, 4, 5, 6, 7),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (1, 2)),
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split", "TopK", "CenterCropPad"), (1,)),
    **dict.fromkeys(("CumSum", "CumProd", "Trilu", "ReverseSequence", "Upsample", "ConstantOfShape"), (1,)),
    **dict.fromkeys(("Slice", "Resize"), (1, 2, 3, 4)),
    "Pad": (1, 2, 3),
    "Clip": (1, 2),
    "OneHot": (1,),
    "Dropout": (1, 2),
    "DFT": (1, 2),
    "STFT": (1, 2, 3),
    "Col2Im": (1, 2),
    "AffineGrid": (1,),
    "NonMaxSuppression": (2, 3, 4),
    "RoiAlign": (2,),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "Scatter": (1,),
    "Range": (0, 1, 2),
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), (0,)),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
}
FROZEN_FROM_FIRST = {"ConstantOfShape", "Range"}  # everything these read decides the shape: they become constants
for _name in onnx.defs.get_all_schemas():
    if _name.name.startswith("Reduce") and _name.domain == "":
        FROZEN.setdefault(_name.name, (1,))

HUB_TYPES = {"float32", "int64", "int32", "int16", "int8", "uint8", "bool"}
# What neither TFLite's nor Core ML's tensors can be, or what the result's shape would take from the data.
DATA_DEPENDENT = {"NonZero", "Unique", "Compress", "NonMaxSuppression"}


@dataclass(frozen=True, slots=True)
class Case:
    """One node test. ``unrepresentable`` is the reason why no fixed-shape edge format can hold it, or empty."""

    name: str
    op_type: str
    opset: int
    expanded: bool
    all_float: bool
    rtol: float
    atol: float
    unrepresentable: str = ""
    model: onnx.ModelProto | None = None
    feeds: dict[str, Array] = field(default_factory=dict)
    expected: dict[str, Array] = field(default_factory=dict)


@cache
def suite() -> tuple[Case, ...]:
    """Every case, by name."""
    from onnx.backend.test.case.node import collect_testcases

    return tuple(sorted((_case(test) for test in collect_testcases(None)), key=lambda case: case.name))  # type: ignore[arg-type]


def _case(test: Any) -> Case:
    nodes = test.model.graph.node
    expanded = "_expanded" in test.name
    op_type = test.name.removeprefix("test_").split("_")[0] if expanded else nodes[0].op_type
    opset = max((o.version for o in test.model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    inputs, outputs = test.data_sets[0]
    arrays = all(isinstance(array, (np.ndarray, np.generic)) for array in (*inputs, *outputs))
    all_float = arrays and all(np.asarray(array).dtype == np.float32 for array in (*inputs, *outputs))
    common = (test.name, op_type, opset, expanded, all_float, test.rtol, test.atol)
    reason = _unrepresentable(test, nodes, arrays, (*inputs, *outputs))
    if reason:
        return Case(*common, unrepresentable=reason)
    return _complete(test, common)


def _unrepresentable(test: Any, nodes: Any, arrays: bool, values: tuple[Any, ...]) -> str:
    if any(node.domain not in ("", "ai.onnx") for node in nodes):
        return "an operator of another domain (ai.onnx.ml, training)"
    if not arrays:
        return "sequences or optional values"
    types = {np.asarray(value).dtype.name for value in values}
    odd = sorted(types - HUB_TYPES)
    if odd:
        return f"type {'string' if odd[0].startswith(('str', 'object')) else odd[0]}"
    if any(node.op_type in DATA_DEPENDENT for node in nodes):
        return "the result's shape depends on data"
    if any(np.asarray(value).size == 0 for value in values):
        return "an empty tensor"
    if any(node.op_type in ("Bernoulli", "RandomUniform", "RandomNormal", "Multinomial") for node in nodes):
        return "random numbers"
    training = test.name.startswith("test_training_dropout") or "training_mode" in test.name
    if training and any(node.op_type == "Dropout" for node in nodes):
        return "random numbers"
    return ""


def _complete(test: Any, common: tuple[Any, ...]) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    inputs, outputs = (tuple(np.asarray(a) for a in values) for values in test.data_sets[0])
    names = [value.name for value in model.graph.input]
    given = dict(zip(names, inputs, strict=True))
    parameters = _frozen_names(model, names)
    for value in list(model.graph.input):
        if value.name in parameters:
            model.graph.initializer.append(numpy_helper.from_array(given[value.name], value.name))
            model.graph.input.remove(value)
        else:
            value.CopyFrom(_info(value.name, given[value.name]))
    expected = {value.name: array for value, array in zip(model.graph.output, outputs, strict=True)}
    for value in model.graph.output:
        value.CopyFrom(_info(value.name, expected[value.name]))
    feeds = {name: array for name, array in given.items() if name not in parameters}
    return Case(*common, model=model, feeds=feeds, expected=expected)


def _frozen_names(model: onnx.ModelProto, names: list[str]) -> set[str]:
    """Graph inputs that some node reads as a parameter. An expanded test has the parameters of the operator it expands."""
    found: set[str] = set()
    for node in model.graph.node:
        for index in FROZEN.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] in names:
                found.add(node.input[index])
        if node.op_type in FROZEN_FROM_FIRST:
            found |= set(node.input) & set(names)
    return found


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def fed(cases: tuple[Case, ...]) -> Iterator[Case]:
    """Cases that a format could hold."""
    return (case for case in cases if not case.unrepresentable)
