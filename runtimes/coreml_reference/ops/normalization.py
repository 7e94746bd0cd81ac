"""Normalisations. Source: coremltools MIL ops, iOS15 normalization.py (axes, defaults, epsilon inside the root)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.session import Array


@evaluates("batch_norm")
def batch_norm(call: Call) -> Array:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, per channel (axis 1)."""
    x = call.wide("x")
    mean, variance = _channel(call.wide("mean"), x), _channel(call.wide("variance"), x)
    return _affine(call, x, (x - mean) / np.sqrt(variance + np.float32(call.float("epsilon", 1e-5))))


@evaluates("instance_norm")
def instance_norm(call: Call) -> Array:
    x = call.wide("x")
    return _affine(call, x, _standardize(x, tuple(range(2, x.ndim)), call.float("epsilon", 1e-5)))


@evaluates("layer_norm")
def layer_norm(call: Call) -> Array:
    """Standardize over ``axes`` (all, if absent); gamma and beta have the shape of those axes."""
    x = call.wide("x")
    axes = sorted(a % x.ndim for a in call.ints("axes", range(x.ndim)))
    out = _standardize(x, axes, call.float("epsilon", 1e-5))
    shape = [d if i in axes else 1 for i, d in enumerate(x.shape)]
    gamma, beta = call.get("gamma"), call.get("beta")
    out = out if gamma is None else out * gamma.reshape(shape)
    return out if beta is None else out + beta.reshape(shape)


@evaluates("l2_norm")
def l2_norm(call: Call) -> Array:
    """x / sqrt(sum of x^2 over the last three axes + epsilon)"""
    x = call.wide("x")
    total = np.sum(np.square(x), axis=(-3, -2, -1), keepdims=True)
    return np.asarray(x / np.sqrt(total + np.float32(call.float("epsilon", 1e-6))))


@evaluates("local_response_norm")
def local_response_norm(call: Call) -> Array:
    """x / (k + alpha / size * sum over ``size`` neighbouring channels of x^2) ^ beta"""
    x, size = call.wide("x"), call.int("size")
    if size < 1:
        raise ValueError(f"size {size} is not possible")
    # PyTorch's alignment, which the torch front end maps to this operation: size // 2 channels before.
    padded = np.pad(np.square(x), [(0, 0), (size // 2, (size - 1) // 2), *[(0, 0)] * (x.ndim - 2)])
    total = sum((padded[:, i : i + x.shape[1]] for i in range(size)), np.zeros_like(x))
    base = np.float32(call.float("k", 1.0)) + np.float32(call.float("alpha", 1e-4) / size) * total
    return np.asarray(x / base ** np.float32(call.float("beta", 0.75)))


def _standardize(x: Array, axes: Sequence[int], epsilon: float) -> Array:
    centred = x - np.mean(x, axis=tuple(axes), keepdims=True)
    variance = np.mean(np.square(centred), axis=tuple(axes), keepdims=True)
    return np.asarray(centred / np.sqrt(variance + np.float32(epsilon)))


def _channel(vector: Array, x: Array) -> Array:
    return vector.reshape((-1,) + (1,) * (x.ndim - 2))


def _affine(call: Call, x: Array, out: Array) -> Array:
    gamma, beta = call.get("gamma"), call.get("beta")
    out = out if gamma is None else out * _channel(gamma, x)
    return out if beta is None else out + _channel(beta, x)
