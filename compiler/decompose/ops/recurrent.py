"""LSTM, GRU and RNN written out: one cell per time step and direction, in a loop where there are many steps.

Source: the equations in ONNX's operator definitions; gates are in their order (iofc, zrh). Peepholes, initial states, both
directions, clipping and coupled gates included; sequence lengths only where all sequences are whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper

from compiler.decompose.builder import Array, Builder
from compiler.decompose.table import Undecomposable, decomposes

# More steps than this stand in a loop whose body holds at most so many: nodes and file stay small, and what a step of the loop
# costs beside its cells is shared by several.
WRITTEN_OUT, PER_ROUND = 32, 16


@dataclass
class _Direction:
    """One direction's weights, transposed for MatMul, and its states by name. ``b`` is the graph that its cells go to."""

    b: Builder
    w: Array
    r: Array
    wb: Array
    rb: Array
    activations: list[str]
    first: int  # the place of its first activation among the node's
    h: str
    c: str
    peephole: Array | None

    def act(self, place: int, x: str) -> str:
        """Activation ``place`` of ``x``; a gate's sum is clipped before if the node says so, the cell is not.

        Source: onnxruntime's UniDirectionalLstm. The standard says "the input of activations" and has no test.
        """
        clip = self.b.attribute("clip", None)
        if clip is not None and x != self.c:
            x = self.b.op("Clip", x, np.asarray(-clip, np.float32), np.asarray(clip, np.float32))
        return _activation(self.b, self.activations[place], self.first + place, x)


@dataclass
class _Gates:
    """What tells the operators apart: gates, activations, which biases the input's product gets, and the cell."""

    count: int
    activations: list[str]
    cell: Callable[[_Direction, str, int], None]
    joined: bool = True  # whether the recurrent bias may be added to the input's
    states: tuple[str, ...] = field(default=("h",))


def _constant(b: Builder, index: int) -> Array | None:
    operand = b.operand(index)
    if operand is None:
        return None
    if operand.constant is None:
        raise Undecomposable("its weights are computed at run time")
    return operand.constant


def _state(b: Builder, index: int, direction: int, batch: int, hidden: int, layout: int) -> str:
    operand = b.operand(index)
    if operand is None:
        return b.constant(np.zeros((batch, hidden), np.float32))
    return b.reshape(b.take(operand.name, 1 if layout else 0, direction, direction + 1), [batch, hidden])


def _activation(b: Builder, name: str, index: int, x: str) -> str:
    alphas, betas = b.attribute("activation_alpha", None) or [], b.attribute("activation_beta", None) or []
    attributes: dict[str, Any] = {}
    if name in ("LeakyRelu", "ThresholdedRelu", "Elu", "HardSigmoid") and index < len(alphas):
        attributes["alpha"] = alphas[index]
    if name == "HardSigmoid" and index < len(betas):
        attributes["beta"] = betas[index]
    if name not in (
        "Sigmoid",
        "Tanh",
        "Relu",
        "LeakyRelu",
        "ThresholdedRelu",
        "Elu",
        "HardSigmoid",
        "Softsign",
        "Softplus",
    ):
        raise Undecomposable(f"its activation is {name}")
    return b.op(name, x, **attributes)


def _run(b: Builder, gates: _Gates) -> None:
    """Y [steps, directions, batch, hidden], Y_h and, for LSTM, Y_c in the layout asked for."""
    w, r, bias = _constant(b, 1), _constant(b, 2), _constant(b, 3)
    assert w is not None and r is not None
    layout, hidden = b.attribute("layout", 0), r.shape[2]
    steps, batch = (b.x.shape[1], b.x.shape[0]) if layout else (b.x.shape[0], b.x.shape[1])
    lengths = _constant(b, 4)
    if lengths is not None and any(int(length) != steps for length in lengths):
        raise Undecomposable("its sequences have different lengths")
    source = b.transpose(b.x.name, [1, 0, 2]) if layout else b.x.name
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    wholes: list[str] = []
    directions: list[_Direction] = []
    for d, backward in enumerate(backwards[b.attribute("direction", "forward")]):
        wb, rb = np.split(bias[d], 2) if bias is not None else (np.zeros(gates.count * hidden, np.float32),) * 2
        inputs = _turned(b, source, steps) if backward else source
        direction = _direction(b, gates, d, w[d], r[d], wb + rb if gates.joined else wb, rb, batch, layout)
        directions.append(direction)
        whole = (_written_out if steps <= WRITTEN_OUT else _looped)(gates, direction, inputs, steps, batch)
        wholes.append(b.reshape(_turned(b, whole, steps) if backward else whole, [steps, 1, batch, hidden]))
    if b.wanted(0):
        whole = b.op("Concat", *wholes, axis=1) if len(wholes) > 1 else wholes[0]
        b.output(b.transpose(whole, [2, 0, 1, 3]) if layout else whole)
    for index, state in enumerate(gates.states, 1):
        if b.wanted(index):
            parts = [b.reshape(getattr(d, state), [1, batch, hidden]) for d in directions]
            whole = b.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
            b.output(b.transpose(whole, [1, 0, 2]) if layout else whole, index)


def _direction(
    b: Builder, gates: _Gates, d: int, w: Array, r: Array, wb: Array, rb: Array, batch: int, layout: int
) -> _Direction:
    names = b.attribute("activations", None)
    names = [n.decode() if isinstance(n, bytes) else n for n in names or []]
    per = len(gates.activations)
    own = names[d * per : (d + 1) * per] or gates.activations
    states = [_state(b, 5 + i, d, batch, r.shape[1], layout) for i in range(len(gates.states))]
    peephole = _constant(b, 7) if len(states) > 1 else None
    return _Direction(
        b,
        np.ascontiguousarray(w.T),
        np.ascontiguousarray(r.T),
        wb,
        rb,
        own,
        d * per,
        states[0],
        states[1] if len(states) > 1 else "",
        None if peephole is None else peephole[d],
    )


def _turned(b: Builder, name: str, steps: int) -> str:
    """Last step first."""
    return b.take(name, 0, steps - 1, -steps - 1, -1)


def _written_out(gates: _Gates, direction: _Direction, inputs: str, steps: int, batch: int) -> str:
    """The states [steps, batch, hidden] in the order of the steps; ``inputs`` [steps, batch, input]."""
    b, hidden = direction.b, direction.r.shape[0]
    rows_in = b.reshape(inputs, [steps * batch, direction.w.shape[0]])
    sums = b.reshape(_affine(b, rows_in, direction.w, direction.wb), [steps, batch, gates.count * hidden])
    rows = []
    for t in range(steps):
        gates.cell(direction, b.reshape(b.take(sums, 0, t, t + 1), [batch, gates.count * hidden]), hidden)
        rows.append(b.reshape(direction.h, [1, batch, hidden]))
    return b.op("Concat", *rows, axis=0) if steps > 1 else rows[0]


def _looped(gates: _Gates, direction: _Direction, inputs: str, steps: int, batch: int) -> str:
    """The same by a Loop over rounds of equal length; steps that fill no round come first, written out.

    The body multiplies its own inputs: a loop may copy at every round what it reads from outside, and products are larger.
    """
    b, hidden, width = direction.b, direction.r.shape[0], direction.w.shape[0]
    rounds, odd = divmod(steps, PER_ROUND)
    parts = []
    if odd:
        parts.append(_written_out(gates, direction, b.take(inputs, 0, 0, odd), odd, batch))
    even = b.reshape(b.take(inputs, 0, odd, steps), [rounds, PER_ROUND, batch, width])
    stem = f"{b.node.name}/round_{len(b.nodes)}"
    inner = Builder(b.node, b.inputs, b.outputs, stem=stem)
    number, go = f"{stem}/number", f"{stem}/go"
    before = {state: f"{stem}/{state}" for state in gates.states}
    start = {state: getattr(direction, state) for state in gates.states}
    direction.b = inner
    for state, name in before.items():
        setattr(direction, state, name)
    one = inner.op("Gather", even, number, axis=0)
    given = _written_out(gates, direction, one, PER_ROUND, batch)
    after = [getattr(direction, state) for state in gates.states]
    shape, kind = [batch, hidden], helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    body = helper.make_graph(
        inner.nodes,
        f"{stem}/body",
        [
            helper.make_tensor_value_info(number, helper.np_dtype_to_tensor_dtype(np.dtype(np.int64)), []),
            helper.make_tensor_value_info(go, helper.np_dtype_to_tensor_dtype(np.dtype(np.bool_)), []),
            *(helper.make_tensor_value_info(name, kind, shape) for name in before.values()),
        ],
        [
            helper.make_tensor_value_info(go, helper.np_dtype_to_tensor_dtype(np.dtype(np.bool_)), []),
            *(helper.make_tensor_value_info(name, kind, shape) for name in after),
            helper.make_tensor_value_info(given, kind, [PER_ROUND, *shape]),
        ],
        inner.initializers,
    )
    count = b.constant(np.asarray(rounds, np.int64))
    loop = b.op("Loop", count, "", *start.values(), outputs=len(start) + 1, body=body)
    direction.b = b
    for place, state in enumerate(gates.states):
        setattr(direction, state, b.nth(loop, place))
    parts.append(b.reshape(b.nth(loop, len(start)), [rounds * PER_ROUND, *shape]))
    return b.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]


def _affine(b: Builder, x: str, matrix: Array, bias: Array) -> str:
    product = b.op("MatMul", x, matrix)
    return b.op("Add", product, bias) if np.any(bias) else product


@decomposes("LSTM")
def lstm(b: Builder) -> None:
    """i, o, f = sigma(x W + h R + p c + b); c = f c + i g; h = o tanh(c). Coupled: f = 1 - i."""
    coupled = bool(b.attribute("input_forget", 0))

    def cell(d: _Direction, inputs: str, hidden: int) -> None:
        b = d.b
        total = b.op("Add", inputs, b.op("MatMul", d.h, d.r))
        i, o, forget, new = (b.take(total, 1, k * hidden, (k + 1) * hidden) for k in range(4))
        peep = [None] * 3 if d.peephole is None else np.split(d.peephole, 3)
        i = d.act(0, _peeped(b, i, d.c, peep[0]))
        kept = b.op("Sub", b.like(1.0), i) if coupled else d.act(0, _peeped(b, forget, d.c, peep[2]))
        d.c = b.op("Add", b.op("Mul", kept, d.c), b.op("Mul", i, d.act(1, new)))
        d.h = b.op("Mul", d.act(0, _peeped(b, o, d.c, peep[1])), d.act(2, d.c))

    _run(b, _Gates(4, ["Sigmoid", "Tanh", "Tanh"], cell, states=("h", "c")))


def _peeped(b: Builder, gate: str, state: str, weight: Array | None) -> str:
    return gate if weight is None else b.op("Add", gate, b.op("Mul", state, weight))


@decomposes("GRU")
def gru(b: Builder) -> None:
    """z, r = sigma(x W + h R + b); n = tanh(x W_n + r (h R_n + b_n) + ...) or (r h) R_n; h = (1 - z) n + z h."""
    linear = bool(b.attribute("linear_before_reset", 0))

    def cell(d: _Direction, inputs: str, hidden: int) -> None:
        b, two = d.b, 2 * hidden
        states = _affine(b, d.h, np.ascontiguousarray(d.r[:, :two]), d.rb[:two])
        both = d.act(0, b.op("Add", b.take(inputs, 1, 0, two), states))
        z, r = b.take(both, 1, 0, hidden), b.take(both, 1, hidden, two)
        weight, bias = np.ascontiguousarray(d.r[:, two:]), d.rb[two:]
        if linear:
            memory = b.op("Mul", r, _affine(b, d.h, weight, bias))
        else:
            memory = _affine(b, b.op("Mul", r, d.h), weight, bias)
        new = d.act(1, b.op("Add", b.take(inputs, 1, two, 3 * hidden), memory))
        kept = b.op("Sub", b.like(1.0), z)
        d.h = b.op("Add", b.op("Mul", kept, new), b.op("Mul", z, d.h))

    _run(b, _Gates(3, ["Sigmoid", "Tanh"], cell, joined=False))


@decomposes("RNN")
def rnn(b: Builder) -> None:
    """h = tanh(x W + h R + b)"""

    def cell(d: _Direction, inputs: str, hidden: int) -> None:
        d.h = d.act(0, d.b.op("Add", inputs, d.b.op("MatMul", d.h, d.r)))

    _run(b, _Gates(1, ["Tanh"], cell))
