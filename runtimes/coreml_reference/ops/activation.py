"""Activations. Source: coremltools MIL ops, iOS15 activation.py (formulas and defaults quoted from there)."""

from __future__ import annotations

import math

import numpy as np

from runtimes.coreml_reference.ops.elementwise import erf
from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.session import Array


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by exp of the negative magnitude so that nothing overflows."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e))


def softplus(x: Array) -> Array:
    return np.logaddexp(x, np.zeros((), x.dtype))


@evaluates("relu")
def relu(call: Call) -> Array:
    return np.maximum(call["x"], 0)


@evaluates("relu6")
def relu6(call: Call) -> Array:
    return np.clip(call["x"], 0, 6)


@evaluates("leaky_relu")
def leaky_relu(call: Call) -> Array:
    x = call.wide("x")
    return np.where(x >= 0, x, np.float32(call.float("alpha", 0.01)) * x)


@evaluates("prelu")
def prelu(call: Call) -> Array:
    """One alpha per channel, axis 1."""
    x = call.wide("x")
    return np.where(x > 0, x, _per_channel(call.wide("alpha"), x) * x)


@evaluates("elu")
def elu(call: Call) -> Array:
    x = call.wide("x")
    return np.where(x >= 0, x, np.float32(call.float("alpha", 1.0)) * np.expm1(np.minimum(x, 0)))


@evaluates("sigmoid")
def sigmoid_op(call: Call) -> Array:
    return sigmoid(call.wide("x"))


@evaluates("silu")
def silu(call: Call) -> Array:
    x = call.wide("x")
    return x * sigmoid(x)


@evaluates("sigmoid_hard")
def sigmoid_hard(call: Call) -> Array:
    """min(max(alpha * x + beta, 0), 1)"""
    alpha, beta = np.float32(call.float("alpha", 0.2)), np.float32(call.float("beta", 0.5))
    return np.clip(alpha * call.wide("x") + beta, 0, 1)


@evaluates("scaled_tanh")
def scaled_tanh(call: Call) -> Array:
    return np.float32(call.float("alpha", 1)) * np.tanh(np.float32(call.float("beta", 1)) * call.wide("x"))


@evaluates("linear_activation")
def linear_activation(call: Call) -> Array:
    return np.float32(call.float("alpha", 1)) * call.wide("x") + np.float32(call.float("beta", 0))


@evaluates("clamped_relu")
def clamped_relu(call: Call) -> Array:
    """min(beta, x) if x >= 0, min(beta, alpha * x) otherwise."""
    x = call.wide("x")
    return np.asarray(
        np.minimum(np.float32(call.float("beta", 1)), np.where(x >= 0, x, np.float32(call.float("alpha", 1)) * x))
    )


@evaluates("thresholded_relu")
def thresholded_relu(call: Call) -> Array:
    x = call.wide("x")
    return np.where(x >= np.float32(call.float("alpha", 1)), x, np.float32(0))


@evaluates("softplus")
def softplus_op(call: Call) -> Array:
    return softplus(call.wide("x"))


@evaluates("softplus_parametric")
def softplus_parametric(call: Call) -> Array:
    """alpha_i * log(1 + exp(beta_i * x_i)), one pair per channel, axis 1."""
    x = call.wide("x")
    return _per_channel(call.wide("alpha"), x) * softplus(_per_channel(call.wide("beta"), x) * x)


@evaluates("softsign")
def softsign(call: Call) -> Array:
    x = call.wide("x")
    return np.asarray(x / (1 + np.abs(x)))


@evaluates("gelu")
def gelu(call: Call) -> Array:
    x = call.wide("x")
    mode = call.str("mode", "EXACT")
    if mode == "EXACT":
        return np.asarray(np.float32(0.5) * x * (1 + erf(x / np.float32(math.sqrt(2)))))
    if mode == "TANH_APPROXIMATION":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
        return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * sigmoid(np.float32(1.702) * x)
    raise ValueError(f"mode {mode!r} is not known")


@evaluates("softmax")
def softmax_op(call: Call) -> Array:
    return softmax(call.wide("x"), call.int("axis", -1))


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return np.asarray(e / np.sum(e, axis=axis, keepdims=True))


def _per_channel(alpha: Array, x: Array) -> Array:
    return alpha.reshape((-1,) + (1,) * (x.ndim - 2)) if alpha.ndim == 1 else alpha
