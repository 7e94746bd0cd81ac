"""The fused LSTM over a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.importers.tflite.builder import Builder, Unsupported
from compiler.importers.tflite.reader import Operator, enum_names
from compiler.importers.tflite.table import reads
from runtimes.session import Array

# Positions of the operator's inputs. Source: kernels/lstm_shared.h. ONNX orders the gates input, output, forget, cell.
_INPUT_WEIGHTS = (1, 4, 2, 3)
_RECURRENT_WEIGHTS = (5, 8, 6, 7)
_BIASES = (12, 15, 13, 14)
_PEEPHOLES, _PROJECTION, _STATES, _NORMS = (9, 10, 11), (16, 17), (18, 19), (20, 21, 22, 23)


@reads("UNIDIRECTIONAL_SEQUENCE_LSTM")
def lstm(b: Builder, op: Operator) -> None:
    """Data [time, batch, I] or [batch, time, I]. States that an operator wrote before start there and are what is left after.

    Others start at zero, as in every file that keeps none between runs.
    """
    _check(op)
    weights, recurrent = _stacked(b, op, _INPUT_WEIGHTS), _stacked(b, op, _RECURRENT_WEIGHTS)
    bias = _stacked(b, op, _BIASES)
    hidden = recurrent.shape[1] // 4
    first = bool(op.option("timeMajor", False))
    x = b.read(op.inputs[0]) if first else b.read(op.inputs[0], (1, 0, 2))
    both = np.concatenate([bias, np.zeros_like(bias)], axis=1)
    inputs = [x, *map(b.constant, (weights, recurrent, both))]
    states = [op.inputs[place] for place in _STATES]
    if all(b.is_computed(state) for state in states):
        inputs += ["", *(b.emit("Unsqueeze", [b.read(state), b.ints([0])]) for state in states)]
    result, *ends = b.emit_many("LSTM", inputs, 3, hidden_size=hidden)
    for state, end in zip(states, ends, strict=True):
        b.bind(state, b.emit("Squeeze", [end, b.ints([0])]))
    squeezed = b.emit("Squeeze", [result, b.ints([1])])  # [time, direction, batch, H]
    b.bind(op.outputs[0], squeezed, (0, 1, 2) if first else (1, 0, 2))


def _check(op: Operator) -> None:
    for name, places in (("peephole", _PEEPHOLES), ("projection", _PROJECTION), ("normalisation", _NORMS)):
        if any(op.input(i) is not None for i in places):
            raise Unsupported(f"its {name} weights have no form here")
    if op.input(1) is None:
        raise Unsupported("its input and forget gates are coupled")
    if enum_names("ActivationFunctionType")[op.option("fusedActivationFunction")] != "TANH":
        raise Unsupported("its activation is not TANH")
    if op.option("cellClip", 0.0) or op.option("projClip", 0.0):
        raise Unsupported("it clips its states")


def _stacked(b: Builder, op: Operator, places: Sequence[int]) -> Array:
    """[1, 4 * H, ...] float32 in ONNX's order of gates."""
    parts = [b.required(op, place, "weights") for place in places]
    return np.concatenate(parts)[np.newaxis].astype(np.float32)
