"""ONNX's own node tests, turned into hub models for the Core ML exporter.

The node tests feed every operand as a graph input; those that Core ML needs as constants become initializers, as they
are in real models. A case is used at the hub's opset if the operator's definition did not change since.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from compiler.exporters.coreml.lowering import LOWERINGS
from compiler.hub import HUB_IR_VERSION, HUB_OPSET
from tests.compiler.exporters.coreml.support import Arrays, hub

# Operand positions that must be constants.
_CONSTANT: dict[str, set[int]] = {
    "BatchNormalization": {1, 2, 3, 4},
    "InstanceNormalization": {1, 2},
    "LayerNormalization": {1, 2},
    "QuantizeLinear": {1, 2},
    "DequantizeLinear": {1, 2},
    "ConvTranspose": {1},
    "Clip": {1, 2},
    "Dropout": {1, 2},
    "Reshape": {1},
    "Expand": {1},
    "Tile": {1},
    "Squeeze": {1},
    "Unsqueeze": {1},
    "Split": {1},
    "Slice": {1, 2, 3, 4},
    "Pad": {1, 2, 3},
    "Resize": {1, 2, 3},
    **{name: {1} for name in LOWERINGS.op_types() if name.startswith("Reduce")},
}


@dataclass(frozen=True)
class NodeCase:
    """``want`` holds ONNX's expected outputs; ``rtol`` and ``atol`` are the case's own."""

    name: str
    model: ir.Model
    feeds: Arrays
    want: Arrays
    rtol: float
    atol: float


@cache
def node_cases() -> dict[str, NodeCase]:
    """Every usable case of an operator that has a lowering, by name."""
    from onnx.backend.test.case.node import collect_testcases

    known = set(LOWERINGS.op_types())
    cases: dict[str, NodeCase] = {}
    with np.errstate(all="ignore"):  # the cases divide by zero on purpose
        tests = collect_testcases()
    for test in tests:
        graph = test.model.graph
        if test.name.endswith("_expanded") or len(graph.node) != 1 or graph.node[0].op_type not in known:
            continue
        if graph.node[0].domain == "" and _same_definition(graph.node[0].op_type):
            case = _make(test)
            if case is not None:
                cases[case.name] = case
    return cases


def _same_definition(op_type: str) -> bool:
    """Newer definitions of these operators only add element types, or things that a case shows by an attribute."""
    return onnx.defs.has(op_type, HUB_OPSET)


def _make(test: Any) -> NodeCase | None:
    model = onnx.ModelProto.FromString(test.model.SerializeToString())
    graph = model.graph
    node = graph.node[0]
    inputs, outputs = test.data_sets[0]
    if not all(isinstance(a, np.ndarray | np.generic) and a.dtype in _USED_TYPES for a in [*inputs, *outputs]):
        return None
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", HUB_OPSET))
    model.ir_version = HUB_IR_VERSION
    fed = dict(zip((i.name for i in graph.input), inputs, strict=True))
    constant = {node.input[i] for i in _CONSTANT.get(node.op_type, ()) if i < len(node.input) and node.input[i]}
    for value in [v for v in graph.input if v.name in constant]:
        graph.initializer.append(onnx.numpy_helper.from_array(fed.pop(value.name), value.name))
        graph.input.remove(value)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None  # shown in a definition newer than the hub's
    if not fed:
        return None
    if node.op_type == "LayerNormalization":
        del graph.output[1:]  # every case asks for the mean and the deviation as well, hardly any model does
        outputs = outputs[:1]
    names = [o.name for o in graph.output]
    return NodeCase(test.name, hub(model), fed, dict(zip(names, outputs, strict=True)), test.rtol, test.atol)


_USED_TYPES = tuple(np.dtype(t) for t in ("float32", "int32", "int64", "bool", "int8", "uint8"))
