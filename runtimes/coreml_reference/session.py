"""A Session over the evaluator: inputs and outputs as the model's description states them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.coreml_reference.evaluator import Evaluator, Step
from runtimes.coreml_reference.package import read_package
from runtimes.coreml_reference.program import Program, parse_program
from runtimes.coreml_reference.proto import array_type_name
from runtimes.errors import ModelLoadError
from runtimes.session import Array, Evidence, Feeds, RuntimeInfo, SessionBase, TensorSpec, check_feeds

VERSION = "1"
INPUTS_KEY, OUTPUTS_KEY = "edgewright.inputs", "edgewright.outputs"
_ARRAY_TYPES = {"FLOAT16": "float16", "FLOAT32": "float32", "DOUBLE": "float64", "INT32": "int32", "INT8": "int8"}
_REMEDY = "Export the package again with multi-array inputs and outputs."


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output: its name in the program, and how the session shows it."""

    mil_name: str
    spec: TensorSpec


class CoreMLReferenceSession(SessionBase):
    """One .mlpackage, executed by `Evaluator`."""

    def __init__(self, evaluator: Evaluator, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        self._evaluator = evaluator
        self._inputs, self._outputs = inputs, outputs

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._outputs)

    @property
    def runtime(self) -> RuntimeInfo:
        return RuntimeInfo("coreml-reference", VERSION, Evidence.REFERENCE_VERIFIED)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs under the model's names, in fresh arrays. Raises InputMismatch, InferenceFailed."""
        results = self._evaluator.run(self._by_mil_name(feeds))
        return {p.spec.name: np.array(results[p.mil_name], dtype=p.spec.dtype) for p in self._outputs}

    def trace(self, feeds: Feeds) -> Iterator[Step]:
        """Every tensor the program computes, by its MIL name, in order. Raises as ``run`` does, while iterated."""
        yield from self._evaluator.trace(self._by_mil_name(feeds))

    def _by_mil_name(self, feeds: Feeds) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        return {port.mil_name: feeds[port.spec.name] for port in self._inputs}


def open_package(path: Path) -> CoreMLReferenceSession:
    """Read, check and prepare the package at ``path``. Raises ModelLoadError, RuntimeMissing."""
    spec, folder = read_package(path)
    program = parse_program(spec, folder)
    inputs, outputs = _both_ports(spec)
    _check_description(program, inputs, outputs)
    if len(spec.description.state):
        raise ModelLoadError("The model keeps state between calls.", remedy="Export it with explicit state tensors.")
    return CoreMLReferenceSession(Evaluator(program), inputs, outputs)


def read_ports(path: Path) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of the package at ``path``, without reading its weights. Raises as ``open_package``."""
    return _both_ports(read_package(path)[0])


def _both_ports(spec: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    return _ports(spec, spec.description.input, INPUTS_KEY), _ports(spec, spec.description.output, OUTPUTS_KEY)


def _ports(spec: Any, features: Any, key: str) -> tuple[Port, ...]:
    original = name_map(dict(spec.description.metadata.userDefined), key)
    return tuple(Port(f.name, _tensor_spec(f, original.get(f.name, f.name))) for f in features)


def name_map(metadata: dict[str, str], key: str) -> dict[str, str]:
    """{MIL name: original name} from user-defined metadata; empty if the package carries none.

    Raises:
        ModelLoadError: the entry is not a JSON object of strings with distinct values.
    """
    if key not in metadata:
        return {}
    try:
        names = json.loads(metadata[key])
    except ValueError as error:
        raise ModelLoadError(f"Metadata {key!r} is not JSON: {error}.", remedy=_REMEDY) from error
    valid = isinstance(names, dict) and all(isinstance(v, str) for v in names.values())
    if not valid or len(set(names.values())) != len(names):
        raise ModelLoadError(f"Metadata {key!r} does not map names to distinct names.", remedy=_REMEDY)
    return dict(names)


def _tensor_spec(feature: Any, name: str) -> TensorSpec:
    kind = feature.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise ModelLoadError(f"{feature.name!r} is a {kind}, not a multi-array.", remedy=_REMEDY)
    array = feature.type.multiArrayType
    dtype = array_type_name(array.dataType)
    if dtype not in _ARRAY_TYPES:
        raise ModelLoadError(f"{feature.name!r} has the element type {dtype}.", remedy=_REMEDY)
    return TensorSpec(name, _ARRAY_TYPES[dtype], _shape(array))


def _shape(array: Any) -> tuple[int | None, ...]:
    """The default shape, with None where the description allows another size."""
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "shapeRange":
        ranges = array.shapeRange.sizeRanges
        return tuple(int(r.lowerBound) if r.lowerBound == r.upperBound else None for r in ranges)
    if flexible == "enumeratedShapes":
        columns = zip(*(s.shape for s in array.enumeratedShapes.shapes), strict=False)
        return tuple(int(c[0]) if len(set(c)) == 1 else None for c in columns)
    return tuple(int(d) for d in array.shape)


def _check_description(program: Program, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
    """The description and the program name the same inputs and outputs. Raises ModelLoadError."""
    described, real = {p.mil_name for p in inputs}, set(program.inputs)
    missing = {p.mil_name for p in outputs} - set(program.outputs)
    if described != real or missing:
        raise ModelLoadError(
            f"The description names inputs {sorted(described)}, the program takes {sorted(real)}"
            f"{f'; it returns no {sorted(missing)}' if missing else ''}.",
            remedy="Export the package again; its description and its program disagree.",
        )
