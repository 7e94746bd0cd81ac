"""All of ONNX's backend node tests as cases for an exporter: what is frozen, and what each case needs of a format.

The tests come from the installed onnx package. A case's model goes through the importer, as a source of `edgewright build` does.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    "MaxUnpool": (2,),
    "Compress": (1,),
    "Loop": (0, 1),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "Scatter": (1,),
    "Range": (0, 1, 2),
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), (0,)),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2, 3, 4),
}
FROZEN_FROM_FIRST = {"ConstantOfShape", "Range"}  # everything these read decides the shape: they become constants
for _name in onnx.defs.get_all_schemas():
    if _name.name.startswith("Reduce") and _name.domain == "":
        FROZEN.setdefault(_name.name, (1,))

DATA_DEPENDENT = {"Unique", "ImageDecoder"}
SIZED_BY_DATA = {"NonZero", "NonMaxSuppression"}  # whose results a format can have that allocates while it runs
RANDOM = {"Bernoulli", "RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Multinomial"}
MANY_AXES = 6


@dataclass(frozen=True, slots=True)
class Case:
    """One node test. ``constructs``: what it needs that a format may lack, by the keys of tests/conformance/outside.py.

    ``model`` is None where the values are no tensors.
    """

    name: str
    op_type: str
    opset: int
    expanded: bool
    all_float: bool
    rtol: float
    atol: float
    constructs: frozenset[str] = frozenset()
    model: onnx.ModelProto | None = None
    feeds: dict[str, Array] = field(default_factory=dict)
    expected: dict[str, Array] = field(default_factory=dict)


@cache
def suite() -> tuple[Case, ...]:
    """Every case, by name."""
    from onnx.backend.test.case.node import collect_testcases

    tests = {test.name: test for test in collect_testcases(None)}  # type: ignore[arg-type]
    return tuple(_case(tests[name], tests) for name in sorted(tests))


def _case(test: Any, tests: dict[str, Any]) -> Case:
    nodes = test.model.graph.node
    expanded = "_expanded" in test.name
    op_type = test.name.removeprefix("test_").split("_")[0] if expanded else nodes[0].op_type
    opset = max((o.version for o in test.model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    inputs, outputs = ([_array(value) for value in values] for values in test.data_sets[0])
    values = [*inputs, *outputs]
    all_float = all(value is not None and value.dtype == np.float32 for value in values)
    common = (test.name, op_type, opset, expanded, all_float, test.rtol, test.atol)
    constructs = _operators_need(test.name, nodes)
    if any(value is None for value in values):
        return Case(*common, constructs=constructs | {"sequence"})
    names = {_type_name(value) for value in values if value is not None}
    if "string" in names or "foreign" in constructs:
        return Case(*common, constructs=constructs | names)
    return _complete(test, tests, common, constructs | names, [v for v in inputs if v is not None], outputs)


def _array(value: Any) -> Array | None:
    """A test's value as an array; None for sequences and absent optional values."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else None


def _type_name(array: Array) -> str:
    return "string" if array.dtype.kind in "USO" else array.dtype.name


def _operators_need(name: str, nodes: Any) -> frozenset[str]:
    found = set()
    if any(node.domain not in ("", "ai.onnx") for node in nodes):
        found.add("foreign")
    op_types = {node.op_type for node in nodes}
    if op_types & DATA_DEPENDENT:
        found.add("data-dependent")
    if op_types & SIZED_BY_DATA:
        found.add("sized by data")
    training = name.startswith("test_training_dropout") or "training_mode" in name
    if op_types & RANDOM or (training and "Dropout" in op_types):
        found.add("random")
    return frozenset(found)


def _complete(
    test: Any,
    tests: dict[str, Any],
    common: tuple[Any, ...],
    constructs: frozenset[str],
    inputs: Sequence[Array],
    outputs: Sequence[Array | None],
) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    names = [value.name for value in model.graph.input]
    given = dict(zip(names, inputs, strict=True))
    parameters = _frozen_names(model, names) | _frozen_by_operator(test.name, tests)
    for value in list(model.graph.input):
        if value.name in parameters:
            model.graph.initializer.append(numpy_helper.from_array(given[value.name], value.name))
            model.graph.input.remove(value)
        else:
            value.CopyFrom(_info(value.name, given[value.name]))
    expected = {v.name: array for v, array in zip(model.graph.output, outputs, strict=True) if array is not None}
    for value in model.graph.output:
        value.CopyFrom(_info(value.name, expected[value.name]))
    feeds = {name: array for name, array in given.items() if name not in parameters}
    constructs |= _shapes_need(list(feeds.values()), list(expected.values()))
    return Case(*common, constructs=constructs, model=model, feeds=feeds, expected=expected)


def _shapes_need(fed: Sequence[Array], expected: Sequence[Array]) -> frozenset[str]:
    found = set()
    if any(array.size == 0 for array in (*fed, *expected)):
        found.add("empty")
    if any(array.ndim == 0 for array in fed):
        found.add("scalar input")
    if any(array.ndim >= MANY_AXES for array in (*fed, *expected)):
        found.add("rank")
    return frozenset(found)


def _frozen_names(model: onnx.ModelProto, names: Sequence[str]) -> set[str]:
    """Graph inputs that some node reads as a parameter."""
    found: set[str] = set()
    for node in model.graph.node:
        for index in FROZEN.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] in names:
                found.add(node.input[index])
        if node.op_type in FROZEN_FROM_FIRST:
            found |= set(node.input) & set(names)
    return found


def _frozen_by_operator(name: str, tests: dict[str, Any]) -> set[str]:
    """An expanded test has the parameters of the operator it expands; its inputs are called as there."""
    whole = tests.get(name[: name.index("_expanded")]) if "_expanded" in name else None
    if whole is None:
        return set()
    return _frozen_names(whole.model, [value.name for value in whole.model.graph.input])


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
