"""LSTM, GRU and RNN unrolled: one cell per time step and direction.

Source: the equations in ONNX's operator definitions; gates are in their order (iofc, zrh). Peepholes, initial states, both
directions, clipping and coupled gates included; sequence lengths only where all sequences are whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.decompose.builder import Array, Builder
from compiler.decompose.table import Undecomposable, decomposes

MAX_STEPS = 512  # beyond, the unrolled graph serves nobody


@dataclass
class _Direction:
    """One direction's weights, transposed for MatMul, and its states by name."""

    w: Array
    r: Array
    wb: Array
    rb: Array
    activations: list[Callable[[str], str]]
    h: str
    c: str
    peephole: Array | None


def _constant(b: Builder, index: int) -> Array | None:
    operand = b.operand(index)
    if operand is None:
        return None
    if operand.constant is None:
        raise Undecomposable("its weights are computed at run time")
    return operand.constant


def _prepare(b: Builder, gates: int, defaults: list[str]) -> tuple[list[_Direction], list[str], list[bool]]:
    """Directions, the input per time step [batch, input], and which directions run backwards."""
    w, r, bias = _constant(b, 1), _constant(b, 2), _constant(b, 3)
    assert w is not None and r is not None
    count, hidden = r.shape[0], r.shape[2]
    layout = b.attribute("layout", 0)
    steps, batch = (b.x.shape[1], b.x.shape[0]) if layout else (b.x.shape[0], b.x.shape[1])
    lengths = _constant(b, 4)
    if lengths is not None and any(int(length) != steps for length in lengths):
        raise Undecomposable("its sequences have different lengths")
    if steps > MAX_STEPS:
        raise Undecomposable(f"{steps} steps are too many to unroll")
    if b.attribute("clip", None) is not None:
        raise Undecomposable("it clips its cells")
    names = b.attribute("activations", None)
    names = [n.decode() if isinstance(n, bytes) else n for n in names] if names else defaults * count
    per = len(defaults)
    directions = []
    for d in range(count):
        wb, rb = np.split(bias[d], 2) if bias is not None else (np.zeros(gates * hidden, np.float32),) * 2
        peephole = _constant(b, 7) if b.node.op_type == "LSTM" else None
        directions.append(
            _Direction(
                np.ascontiguousarray(w[d].T),
                np.ascontiguousarray(r[d].T),
                wb,
                rb,
                [_activation(b, names[d * per + i], d * per + i) for i in range(per)],
                _state(b, 5, d, batch, hidden, layout),
                _state(b, 6, d, batch, hidden, layout) if b.node.op_type == "LSTM" else "",
                None if peephole is None else peephole[d],
            )
        )
    axis = 1 if layout else 0
    inputs = [b.reshape(b.take(b.x.name, axis, t, t + 1), [batch, b.x.shape[2]]) for t in range(steps)]
    direction = b.attribute("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    return directions, inputs, backwards


def _state(b: Builder, index: int, direction: int, batch: int, hidden: int, layout: int) -> str:
    operand = b.operand(index)
    if operand is None:
        return b.constant(np.zeros((batch, hidden), np.float32))
    return b.reshape(b.take(operand.name, 1 if layout else 0, direction, direction + 1), [batch, hidden])


def _activation(b: Builder, name: str, index: int) -> Callable[[str], str]:
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
    return lambda x: b.op(name, x, **attributes)


def _run(b: Builder, gates: int, defaults: list[str], cell: Callable[[Builder, _Direction, str, int], None]) -> None:
    """Unroll, then write Y [steps, directions, batch, hidden], Y_h and, for LSTM, Y_c in the layout asked for."""
    directions, inputs, backwards = _prepare(b, gates, defaults)
    r = _constant(b, 2)
    assert r is not None
    hidden, steps = r.shape[2], len(inputs)
    layout = b.attribute("layout", 0)
    batch = b.x.shape[0] if layout else b.x.shape[1]
    outputs: list[list[str]] = []
    for direction, backward in zip(directions, backwards, strict=True):
        order = range(steps - 1, -1, -1) if backward else range(steps)
        seen = {}
        for t in order:
            cell(b, direction, inputs[t], hidden)
            seen[t] = direction.h
        outputs.append([seen[t] for t in range(steps)])
    last = [1, len(directions), batch, hidden]
    if b.wanted(0):
        rows = [
            b.op("Concat", *(b.reshape(one[t], [1, 1, batch, hidden]) for one in outputs), axis=1)
            if len(outputs) > 1
            else b.reshape(outputs[0][t], last)
            for t in range(steps)
        ]
        whole = b.op("Concat", *rows, axis=0) if steps > 1 else rows[0]
        b.output(b.transpose(whole, [2, 0, 1, 3]) if layout else whole)
    finals = [("h", 1)] + ([("c", 2)] if b.node.op_type == "LSTM" else [])
    for state, index in finals:
        if b.wanted(index):
            parts = [b.reshape(getattr(d, state), [1, batch, hidden]) for d in directions]
            whole = b.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
            b.output(b.transpose(whole, [1, 0, 2]) if layout else whole, index)


def _affine(b: Builder, x: str, matrix: Array, bias: Array) -> str:
    product = b.op("MatMul", x, matrix)
    return b.op("Add", product, bias) if np.any(bias) else product


@decomposes("LSTM")
def lstm(b: Builder) -> None:
    """i, o, f = sigma(x W + h R + p c + b); c = f c + i g; h = o tanh(c). Coupled: f = 1 - i."""
    coupled = bool(b.attribute("input_forget", 0))

    def cell(b: Builder, d: _Direction, x: str, hidden: int) -> None:
        f, g, h = d.activations
        total = b.op("Add", _affine(b, x, d.w, d.wb + d.rb), b.op("MatMul", d.h, d.r))
        i, o, forget, new = (b.take(total, 1, k * hidden, (k + 1) * hidden) for k in range(4))
        peep = [None] * 3 if d.peephole is None else np.split(d.peephole, 3)
        i = f(_peeped(b, i, d.c, peep[0]))
        kept = b.op("Sub", b.like(1.0), i) if coupled else f(_peeped(b, forget, d.c, peep[2]))
        d.c = b.op("Add", b.op("Mul", kept, d.c), b.op("Mul", i, g(new)))
        d.h = b.op("Mul", f(_peeped(b, o, d.c, peep[1])), h(d.c))

    _run(b, 4, ["Sigmoid", "Tanh", "Tanh"], cell)


def _peeped(b: Builder, gate: str, state: str, weight: Array | None) -> str:
    return gate if weight is None else b.op("Add", gate, b.op("Mul", state, weight))


@decomposes("GRU")
def gru(b: Builder) -> None:
    """z, r = sigma(x W + h R + b); n = tanh(x W_n + r (h R_n + b_n) + ...) or (r h) R_n; h = (1 - z) n + z h."""
    linear = bool(b.attribute("linear_before_reset", 0))

    def cell(b: Builder, d: _Direction, x: str, hidden: int) -> None:
        f, g = d.activations
        two = 2 * hidden
        inputs = _affine(b, x, d.w, d.wb)
        states = _affine(b, d.h, np.ascontiguousarray(d.r[:, :two]), d.rb[:two])
        both = f(b.op("Add", b.take(inputs, 1, 0, two), states))
        z, r = b.take(both, 1, 0, hidden), b.take(both, 1, hidden, two)
        weight, bias = np.ascontiguousarray(d.r[:, two:]), d.rb[two:]
        if linear:
            memory = b.op("Mul", r, _affine(b, d.h, weight, bias))
        else:
            memory = _affine(b, b.op("Mul", r, d.h), weight, bias)
        new = g(b.op("Add", b.take(inputs, 1, two, 3 * hidden), memory))
        kept = b.op("Sub", b.like(1.0), z)
        d.h = b.op("Add", b.op("Mul", kept, new), b.op("Mul", z, d.h))

    _run(b, 3, ["Sigmoid", "Tanh"], cell)


@decomposes("RNN")
def rnn(b: Builder) -> None:
    """h = tanh(x W + h R + b)"""

    def cell(b: Builder, d: _Direction, x: str, hidden: int) -> None:
        total = b.op("Add", _affine(b, x, d.w, d.wb + d.rb), b.op("MatMul", d.h, d.r))
        d.h = d.activations[0](total)

    _run(b, 1, ["Tanh"], cell)
