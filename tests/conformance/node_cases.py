"""ONNX's own backend node tests, generated from the installed onnx package."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

HUB_OPSET, HUB_IR_VERSION = 21, 10
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One node test: a model at the hub's opset, feeds by input name, expected outputs by name, the suite's tolerances."""

    name: str
    op_type: str
    model: onnx.ModelProto
    feeds: dict[str, Array]
    expected: dict[str, Array]
    rtol: float
    atol: float


@cache
def _collected() -> tuple[Any, ...]:
    from onnx.backend.test.case.node import collect_testcases

    return tuple(collect_testcases(None))  # type: ignore[arg-type]


def cases(op_types: Collection[str], *, keep_inputs: int = 1) -> list[Case]:
    """The single-node cases of ``op_types`` whose operator means the same at the hub's opset.

    Inputs after the first ``keep_inputs`` become initializers, as weights and shapes are in real models.
    Cases of operator versions newer than the hub's opset are left out.
    """
    found = []
    for test in _collected():
        model = test.model
        nodes = model.graph.node
        if len(nodes) != 1 or nodes[0].op_type not in op_types or nodes[0].domain not in ("", "ai.onnx"):
            continue
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        definition = onnx.defs.get_schema(nodes[0].op_type, HUB_OPSET, "")
        if onnx.defs.get_schema(nodes[0].op_type, opset, "").since_version < definition.since_version:
            continue
        case = _case(test, keep_inputs)
        if case is not None and _valid(case.model):
            found.append(case)
    return sorted(found, key=lambda case: case.name)


def _valid(model: onnx.ModelProto) -> bool:
    """Whether the case means something at the hub's opset: newer versions bring attributes and types that it lacks."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _case(test: Any, keep_inputs: int) -> Case | None:
    inputs, outputs = test.data_sets[0]
    if not all(isinstance(array, np.ndarray) for array in (*inputs, *outputs)):
        return None  # sequences and optionals
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", HUB_OPSET))
    model.ir_version = HUB_IR_VERSION
    model.graph.node[0].name = "node"
    names = [value.name for value in model.graph.input]
    arrays = dict(zip(names, inputs, strict=True))
    for value in list(model.graph.input)[keep_inputs:]:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(arrays[value.name]), value.name))
        model.graph.input.remove(value)
    for value, array in zip(model.graph.output, outputs, strict=True):
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        )
    expected = {value.name: array for value, array in zip(model.graph.output, outputs, strict=True)}
    feeds = {name: np.asarray(arrays[name]) for name in names[:keep_inputs]}
    return Case(test.name, test.model.graph.node[0].op_type, model, feeds, expected, test.rtol, test.atol)
