"""The integers of an INT8 artifact: codes, scales and zero points by the names that the hub gave them.

Names are the hub's: "conv1.weight" for a constant, the value's own for an activation. ONNX artifacts hold them as
perform.py wrote them, TFLite files as the exporter did; Core ML packages hold what became of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
import onnx_ir as ir

from compiler.errors import CompilerError, DataError
from compiler.previous.find import PreviousRelease
from compiler.quantization.spec import QParams
from runtimes.errors import RuntimeFailure
from runtimes.session import Array


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A quantized constant: ``codes`` in the hub's layout."""

    codes: Array
    params: QParams


@dataclass(slots=True)
class Numbers:
    """``constants`` by the name of the float constant; ``biases`` by the name of the weight beside them."""

    activations: dict[str, QParams] = field(default_factory=dict)
    constants: dict[str, Codes] = field(default_factory=dict)
    biases: dict[str, Codes] = field(default_factory=dict)


def read_numbers(previous: PreviousRelease, hub: ir.Model) -> Numbers:
    """From the ONNX artifact if there is one, else from the TFLite one, else from the Core ML one.

    Args:
        hub: the new float model, whose names tell what a Core ML package's identifiers stand for.

    Raises:
        DataError: the release has none of them in INT8, or it cannot be read.
    """
    for fmt in ("onnx", "tflite", "coreml"):
        artifact = previous.of(fmt, "int8")
        if artifact is not None:
            try:
                found: Numbers = import_module(f"compiler.previous.{fmt}_numbers").read(artifact.file, hub)
                return found
            except (CompilerError, RuntimeFailure) as error:
                raise DataError(
                    f"{previous.title}: {error.message}", remedy="Leave out --previous, or choose another release."
                ) from error
    raise DataError(
        f"{previous.title} has no INT8 artifact to keep numbers of.",
        remedy="Choose a release with one, or leave out --previous.",
    )


def codes_of(codes: Array, scale: Array, zero_point: int, axis: int | None) -> Codes:
    """int8 codes with zero point 0 are weights, whose lowest code is unused (LiteRT's specification)."""
    narrow = codes.dtype == np.int8 and zero_point == 0
    return Codes(codes, QParams(codes.dtype.name, scale.reshape(-1), zero_point, axis, narrow))
