"""lstm, gru and rnn, step by step in float32. Source: coremltools MIL ops, iOS15 and iOS18 recurrent.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtimes.coreml_reference.ops.activation import sigmoid
from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.session import Array

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "sigmoid_hard": lambda x: np.clip(np.float32(0.2) * x + np.float32(0.5), 0, 1),
}


def _activation(call: Call, name: str, default: str) -> Callable[[Array], Array]:
    chosen = call.str(name, default)
    if chosen not in _ACTIVATIONS:
        raise ValueError(f"{name} {chosen!r} is not known")
    return _ACTIVATIONS[chosen]


@evaluates("lstm")
def lstm(call: Call) -> tuple[Array, ...]:
    """x [s, b, I] to (h of every step or the last, last h, last c); both directions side by side on the last axis."""
    x, h0, c0 = call.wide("x"), call.wide("initial_h"), call.wide("initial_c")
    direction = call.str("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(f"direction {direction!r} is not known")
    if direction != "bidirectional":
        seq, h, c = _lstm_pass(call, x, h0, c0, "", backwards=direction == "reverse")
    else:
        half = h0.shape[-1] // 2
        forward = _lstm_pass(call, x, h0[:, :half], c0[:, :half], "", backwards=False)
        backward = _lstm_pass(call, x, h0[:, half:], c0[:, half:], "_back", backwards=True)
        seq, h, c = (np.concatenate(pair, axis=-1) for pair in zip(forward, backward, strict=True))
    return (seq if call.bool("output_sequence") else h[None]), h, c


def _lstm_pass(call: Call, x: Array, h: Array, c: Array, suffix: str, *, backwards: bool) -> tuple[Array, Array, Array]:
    """One direction. Gates in the weights: input, forget, output, cell."""
    recurrent = _activation(call, "recurrent_activation", "sigmoid")
    cell, final = _activation(call, "cell_activation", "tanh"), _activation(call, "activation", "tanh")
    size = h.shape[-1]
    peephole = call.get("peephole" + suffix)
    peep = np.zeros((3, size), np.float32) if peephole is None else peephole.reshape(3, size)
    bound = call.float("clip", float("inf"))
    bias = call.get("bias" + suffix)
    projected = x @ call.wide("weight_ih" + suffix).T + (0 if bias is None else bias)
    weight = call.wide("weight_hh" + suffix).T
    outputs = np.empty((*x.shape[:2], size), np.float32)
    steps = range(x.shape[0])
    for t in reversed(steps) if backwards else steps:
        i, f, o, z = np.split(np.clip(projected[t] + h @ weight, -bound, bound), 4, axis=-1)
        keep = recurrent(f + peep[1] * c) * c
        i = recurrent(i + peep[0] * c)
        c = keep + i * cell(z)
        h = recurrent(o + peep[2] * c) * final(c)
        outputs[t] = h
    return outputs, h, c


@evaluates("gru")
def gru(call: Call) -> tuple[Array, ...]:
    """h = (1 - z) * o + z * h with o = act(W x + b + r * (V h [+ input bias])); gates in the weights: r, o, z.

    iOS18's ``reset_after`` and ``input_bias`` have no documented formula and are refused.
    """
    if call.bool("reset_after") or call.has("input_bias"):
        raise ValueError("reset_after and input_bias are not supported")
    x, h = call.wide("x"), call.wide("initial_h")
    recurrent, final = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "activation", "tanh")
    size = h.shape[-1]
    zero = np.zeros(3 * size, np.float32)
    bias = call.get("bias")
    projected = x @ call.wide("weight_ih").T + (zero if bias is None else bias)
    weight = call.wide("weight_hh").T
    direction = call.str("direction", "forward")
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction {direction!r} is not known")
    outputs = np.empty((*x.shape[:2], size), np.float32)
    steps = range(x.shape[0])
    for t in reversed(steps) if direction == "reverse" else steps:
        xr, xo, xz = np.split(projected[t], 3, axis=-1)
        hr, ho, hz = np.split(h @ weight, 3, axis=-1)
        z = recurrent(xz + hz)
        o = final(xo + recurrent(xr + hr) * ho)
        h = (1 - z) * o + z * h
        outputs[t] = h
    return (outputs if call.bool("output_sequence") else h[None]), h


@evaluates("rnn")
def rnn(call: Call) -> tuple[Array, ...]:
    """h = activation(W x + b + V h)"""
    x, h = call.wide("x"), call.wide("initial_h")
    activation, direction = _activation(call, "activation", "tanh"), call.str("direction", "forward")
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction {direction!r} is not known")
    bias = call.get("bias")
    projected = x @ call.wide("weight_ih").T + (0 if bias is None else bias)
    weight = call.wide("weight_hh").T
    outputs = np.empty((*x.shape[:2], h.shape[-1]), np.float32)
    steps = range(x.shape[0])
    for t in reversed(steps) if direction == "reverse" else steps:
        h = activation(projected[t] + h @ weight)
        outputs[t] = h
    return (outputs if call.bool("output_sequence") else h[None]), h
