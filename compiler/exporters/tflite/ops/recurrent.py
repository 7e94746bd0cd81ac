"""LSTM and RNN as LiteRT's fused operators over a whole sequence.

The kernels keep their states in variable tensors, which live on into the next invocation. ONNX starts every run from the initial
states, so an operator writes these into the variable tensors first, at every invocation, and the kernel then works on them.

Source: LiteRT's kernels/unidirectional_sequence_lstm.cc, unidirectional_sequence_rnn.cc, lstm_shared.h; ONNX's equations of LSTM
and RNN. The kernel's gates are input, forget, cell, output; ONNX's are input, output, forget, cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, dtype_of, name_of, shape_of
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import Array, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

ACTIVATIONS = {"Relu": 1, "Tanh": 4}  # ActivationFunctionType in the schema
GATES = (0, 2, 3, 1)  # ONNX's place of the kernel's input, forget, cell and output gate
PEEPHOLES = (0, 2, 1)  # ONNX's place of the kernel's peepholes to the input, forget and output gate
BACKWARDS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A recurrent node: ``x`` [time, batch, input] or, with ``batch_first``, [batch, time, input], and its constant weights.

    ``zero`` is a column [batch, 1] of zeros that is computed at run time: a state that is the result of constants alone could be
    computed once, when the interpreter prepares the graph, and would then not be written again.
    """

    node: ir.Node
    x: Tensor
    zero: Tensor
    batch_first: bool
    hidden: int
    w: Array
    r: Array
    bias: Array

    @property
    def batch(self) -> int:
        return self.x.shape[0 if self.batch_first else 1]

    @property
    def time(self) -> int:
        return 1 if self.batch_first else 0


@lowers("LSTM", since=14)
def lstm(context: LoweringContext, node: ir.Node) -> None:
    """Raises Unsupported where the kernel says something else; the cells are then written out one by one."""
    if attr.integer(node, "input_forget", 0):
        raise Unsupported("its input and forget gates are coupled, which the fused kernel does the other way round")
    _same_activations(node, ("Sigmoid", None, None))
    sequence = _sequence(context, node, 4)
    peepholes = attr.operand(node, 7)
    weights = None if peepholes is None else context.required_constant(peepholes, "peepholes")
    ends: list[list[Tensor]] = []
    for direction, backward in enumerate(BACKWARDS[attr.text(node, "direction", "forward")]):
        x = _turned(context, sequence, sequence.x) if backward else sequence.x
        states = [_state(context, sequence, place, direction) for place in (5, 6)]
        peeps: list[Tensor | None] = [None] * 3
        if weights is not None:
            peeps = [context.literal(part) for part in _parts(weights[direction], 3, PEEPHOLES)]
        inputs = [
            x,
            *(context.literal(part) for part in _parts(sequence.w[direction], 4, GATES)),
            *(context.literal(part) for part in _parts(sequence.r[direction], 4, GATES)),
            *peeps,
            *(context.literal(part) for part in _parts(sequence.bias[direction], 4, GATES)),
            *(None, None),
            *states,
            *(None, None, None, None),
        ]
        y = context.writer.tensor(f"{node.name}/y", (*x.shape[:2], sequence.hidden), x.dtype)
        fields: dict[str, Any] = {"cellClip": 0.0, "projClip": 0.0}
        _emit(context, sequence, "UNIDIRECTIONAL_SEQUENCE_LSTM", "UnidirectionalSequenceLSTMOptions", inputs, y, fields)
        last = _step(context, sequence, y)
        ends.append([_turned(context, sequence, y) if backward else y, last])
        if _wanted(node, 2):
            ends[-1].append(_after(context, states[1], last))
    _results(context, sequence, ends)


@lowers("RNN", since=14)
def rnn(context: LoweringContext, node: ir.Node) -> None:
    _same_activations(node, (None,))
    sequence = _sequence(context, node, 1)
    ends: list[list[Tensor]] = []
    for direction, backward in enumerate(BACKWARDS[attr.text(node, "direction", "forward")]):
        x = _turned(context, sequence, sequence.x) if backward else sequence.x
        weights = [context.literal(part[direction]) for part in (sequence.w, sequence.r, sequence.bias)]
        y = context.writer.tensor(f"{node.name}/y", (*x.shape[:2], sequence.hidden), x.dtype)
        state = _state(context, sequence, 5, direction)
        _emit(context, sequence, "UNIDIRECTIONAL_SEQUENCE_RNN", "SequenceRNNOptions", [x, *weights, state], y, {})
        ends.append([_turned(context, sequence, y) if backward else y, _step(context, sequence, y)])
    _results(context, sequence, ends)


def _emit(
    context: LoweringContext,
    sequence: _Sequence,
    code: str,
    options: str,
    inputs: Sequence[Tensor | None],
    output: Tensor,
    fields: dict[str, Any],
) -> None:
    activation = ACTIVATIONS[(_activations(sequence.node) or ["Tanh"])[-1]]
    fields |= {"timeMajor": not sequence.batch_first, "fusedActivationFunction": activation}
    context.emit(code, inputs, [output], options, **fields)


def _activations(node: ir.Node) -> list[str]:
    attribute = node.attributes.get("activations")
    return [] if attribute is None else [str(name) for name in attribute.as_strings()]


def _same_activations(node: ir.Node, wanted: Sequence[str | None]) -> None:
    """Raises Unsupported unless every direction has ``wanted``, where the entries None are one and the same of ACTIVATIONS."""
    names = _activations(node)
    own = [name for i, name in enumerate(names) if wanted[i % len(wanted)] is None]
    fixed = all(name == wanted[i % len(wanted)] for i, name in enumerate(names) if wanted[i % len(wanted)] is not None)
    if not fixed or len(set(own)) > 1 or not set(own) <= set(ACTIVATIONS):
        raise Unsupported(f"its activations are {names}, and the fused kernel has one of {sorted(ACTIVATIONS)} for all")
    if node.attributes.get("clip") is not None:
        raise Unsupported("it clips what goes into its activations, and the fused kernel clips the cells")


def _sequence(context: LoweringContext, node: ir.Node, gates: int) -> _Sequence:
    source = attr.first(node)
    if dtype_of(source) != np.float32:
        raise Unsupported(f"its type is {dtype_of(source)}", "Use float32.")
    w, r = (context.required_constant(attr.operand(node, i), "weights") for i in (1, 2))
    bias = context.required_constant(attr.operand(node, 3), "bias") if attr.operand(node, 3) is not None else None
    batch_first = bool(attr.integer(node, "layout", 0))
    _whole(context, node, shape_of(source)[1 if batch_first else 0])
    total = np.zeros((len(w), gates * r.shape[2]), np.float32)
    if bias is not None:
        total = bias[:, : gates * r.shape[2]] + bias[:, gates * r.shape[2] :]
    if context.free_batch:
        # Measured with LiteRT 2.1: after a resize of the input the states are those of the size before.
        raise Unsupported("the fused kernel's states keep their size when the batch changes")
    x = context.read(source, layout.identity(3))
    return _Sequence(node, x, _zero(context, x, batch_first), batch_first, r.shape[2], w, r, total)


def _whole(context: LoweringContext, node: ir.Node, steps: int) -> None:
    given = attr.operand(node, 4)
    if given is None:
        return
    lengths = context.constant(given)
    if lengths is None or any(int(length) != steps for length in lengths):
        raise Unsupported("its sequences have lengths of their own, which the fused kernel does not know")


def _zero(context: LoweringContext, x: Tensor, batch_first: bool) -> Tensor:
    """[batch, 1] zeros, whatever ``x`` holds: no number is less than itself."""
    batch = x.shape[0 if batch_first else 1]
    size = (batch, 1, 1) if batch_first else (1, batch, 1)
    first = _slice(context, x, (0, 0, 0), size)
    never = context.writer.tensor(f"{context.node}/never", size, np.dtype(np.bool_))
    context.emit("LESS", [first, first], [never], "LessOptions")
    zero = context.temporary(size, x)
    context.emit("CAST", [never], [zero], None, to=zero.dtype)
    return context.reshape(zero, (batch, 1))


def _state(context: LoweringContext, sequence: _Sequence, place: int, direction: int) -> Tensor:
    """A variable tensor [batch, hidden], filled with the initial state at every invocation.

    TILE writes it, since that is no operator whose result LiteRT's planner may put where its input lies (ADD and RESHAPE are:
    the variable tensor would be left without memory).
    """
    value, shape = attr.operand(sequence.node, place), (sequence.batch, sequence.hidden)
    constant, axis = context.constant(value), 1 if sequence.batch_first else 0
    if value is not None and constant is None:
        start = context.reshape(_direction(context, context.read(value, layout.identity(3)), axis, direction), shape)
    elif constant is not None and constant.any():
        start = context.temporary(shape, sequence.x)
        data = np.ascontiguousarray(constant.take(direction, axis).reshape(shape))
        zeros = _tiled(context, sequence.zero, context.temporary(shape, sequence.x))
        context.emit("ADD", [context.literal(data, "start"), zeros], [start], "AddOptions")
    else:
        start = sequence.zero
    return _tiled(context, start, context.writer.tensor(f"{context.node}/state", shape, start.dtype, variable=True))


def _tiled(context: LoweringContext, rows: Tensor, result: Tensor) -> Tensor:
    """``rows`` [batch, hidden], or one column of them, as ``result`` [batch, hidden]."""
    times = context.literal(np.asarray([1, result.shape[1] // rows.shape[1]], np.int32), "times")
    context.emit("TILE", [rows, times], [result], "TileOptions")
    return result


def _direction(context: LoweringContext, states: Tensor, axis: int, direction: int) -> Tensor:
    """One direction of initial states."""
    if states.shape[axis] == 1:
        return states
    size = [1 if a == axis else n for a, n in enumerate(states.shape)]
    begin = [direction if a == axis else 0 for a in range(3)]
    return _slice(context, states, begin, size)


def _slice(context: LoweringContext, tensor: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    result = context.temporary(size, tensor)
    bounds = [context.literal(np.asarray(numbers, np.int32), "bounds") for numbers in (begin, size)]
    context.emit("SLICE", [tensor, *bounds], [result], "SliceOptions")
    return result


def _parts(stacked: Array, count: int, order: Sequence[int]) -> list[Array]:
    """The gates of ``stacked`` along its first axis, in the kernel's order."""
    parts = np.split(stacked, count)
    return [np.ascontiguousarray(parts[place]) for place in order]


def _turned(context: LoweringContext, sequence: _Sequence, tensor: Tensor) -> Tensor:
    """Last step first."""
    result = context.temporary(tensor.shape, tensor)
    axis = context.literal(np.asarray([sequence.time], np.int32), "axis")
    context.emit("REVERSE_V2", [tensor, axis], [result], "ReverseV2Options")
    return result


def _step(context: LoweringContext, sequence: _Sequence, y: Tensor) -> Tensor:
    """What the kernel gave last, [batch, hidden]."""
    size = [1 if a == sequence.time else n for a, n in enumerate(y.shape)]
    begin = [y.shape[a] - 1 if a == sequence.time else 0 for a in range(3)]
    return context.reshape(_slice(context, y, begin, size), (sequence.batch, sequence.hidden))


def _after(context: LoweringContext, state: Tensor, last: Tensor) -> Tensor:
    """``state`` as the kernel left it: next to what the kernel gave, or a delegate could read it before the kernel ran."""
    batch, hidden = state.shape
    both = context.temporary((batch, 2 * hidden), last)
    context.emit("CONCATENATION", [state, last], [both], "ConcatenationOptions", axis=1)
    return _slice(context, both, (0, 0), (batch, hidden))


def _wanted(node: ir.Node, place: int) -> bool:
    return place < len(node.outputs) and bool(node.outputs[place].name)


def _results(context: LoweringContext, sequence: _Sequence, ends: Sequence[Sequence[Tensor]]) -> None:
    """Y [time, direction, batch, hidden] or [batch, time, direction, hidden]; Y_h and Y_c [direction, batch, hidden], or with the
    batch first."""
    node, batch, hidden = sequence.node, sequence.batch, sequence.hidden
    steps = sequence.x.shape[sequence.time]
    for place, parts in enumerate(zip(*ends, strict=True)):
        if not _wanted(node, place):
            continue
        shape: tuple[int, ...]
        if place == 0:
            shape, axis = ((batch, steps, 1, hidden), 2) if sequence.batch_first else ((steps, 1, batch, hidden), 1)
        else:
            shape, axis = ((batch, 1, hidden), 1) if sequence.batch_first else ((1, batch, hidden), 0)
        tensors = [context.reshape(part, shape) for part in parts]
        output, order = node.outputs[place], layout.identity(len(shape))
        if len(tensors) == 1:
            context.writer.rename(tensors[0], name_of(output))
            context.bind(output, tensors[0], order)
        else:
            context.emit("CONCATENATION", tensors, [context.produce(output, order)], "ConcatenationOptions", axis=axis)
