"""A Session over the evaluator: inputs and outputs as the model's description states them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.coreml_reference.evaluator import Evaluator, Step
from runtimes.coreml_reference.package import read_package
from runtimes.coreml_reference.ports import Port, fit_feeds, read_both
from runtimes.coreml_reference.program import Program, parse_program
from runtimes.coreml_reference.shaking import Shake, Shaken
from runtimes.errors import ModelLoadError
from runtimes.session import Array, Evidence, Feeds, RuntimeInfo, SessionBase, TensorSpec

VERSION = "1"


class CoreMLReferenceSession(SessionBase):
    """One .mlpackage, executed by `Evaluator`.

    A stateful program's states start as zeros, as Core ML's ``makeState`` gives them, and go on from run to run; ``reset`` makes
    them zeros again. ``trace`` starts from them and leaves them as they are.
    """

    def __init__(self, evaluator: Evaluator, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        self._evaluator = evaluator
        self._inputs, self._outputs = inputs, outputs
        self._kept: dict[str, Array] = {}

    def reset(self) -> None:
        self._kept = {}

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
        results = self._evaluator.run(self._by_mil_name(feeds), self._kept)
        return {p.spec.name: _answer(p, results[p.mil_name]) for p in self._outputs}

    def trace(self, feeds: Feeds) -> Iterator[Step]:
        """Every tensor the program computes, by its MIL name, in order. Raises as ``run`` does, while iterated."""
        yield from self._evaluator.trace(self._by_mil_name(feeds), self._kept)

    def _by_mil_name(self, feeds: Feeds) -> dict[str, Array]:
        fitted = fit_feeds(self._inputs, feeds)
        return {port.mil_name: _fed(port, fitted[port.spec.name]) for port in self._inputs}


def _fed(port: Port, array: Array) -> Array:
    """What the program's input gets: a picture's pixels as float32 [1, channels, height, width], else the array."""
    if port.picture is None:
        return array
    return port.picture.pixels(array, port.spec.name).transpose(2, 0, 1)[np.newaxis].astype(np.float32)


def _answer(port: Port, result: Array) -> Array:
    array = np.array(result, dtype=port.spec.dtype)
    return array.reshape([d or -1 for d in port.spec.shape]) if port.classes else array


def open_package(path: Path, shake: Shake | None = None) -> CoreMLReferenceSession:
    """Read, check and prepare the package at ``path``.

    Args:
        shake: run in float32 with every float16 result off by a rounding at random (shaking.py).

    Raises ModelLoadError, RuntimeMissing.
    """
    spec, folder = read_package(path)
    program = parse_program(spec, folder)
    inputs, outputs = read_both(spec)
    _check_description(spec, program, inputs, outputs)
    if shake is None:
        return CoreMLReferenceSession(Evaluator(program), inputs, outputs)
    shaken = Shaken(program, shake)
    return CoreMLReferenceSession(Evaluator(shaken.program, shaken.settle), inputs, outputs)


def read_ports(path: Path) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of the package at ``path``, without reading its weights. Raises as ``open_package``."""
    return read_both(read_package(path)[0])


def _check_description(spec: Any, program: Program, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
    """The description and the program name the same inputs and outputs. Raises ModelLoadError."""
    described, real = {p.mil_name for p in inputs}, set(program.inputs)
    missing = {p.mil_name for p in outputs} - set(program.outputs)
    states = {feature.name for feature in spec.description.state}
    if states != set(program.states):
        raise ModelLoadError(
            f"The description names states {sorted(states)}, the program keeps {sorted(program.states)}.",
            remedy="Export the package again; its description and its program disagree.",
        )
    if described != real or missing:
        raise ModelLoadError(
            f"The description names inputs {sorted(described)}, the program takes {sorted(real)}"
            f"{f'; it returns no {sorted(missing)}' if missing else ''}.",
            remedy="Export the package again; its description and its program disagree.",
        )
