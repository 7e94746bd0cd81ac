"""Random numbers. Their distributions are documented, the generator is not: values differ from the device's.

A seed makes them the same in every run here; without one (-1) every run draws anew. Source: coremltools MIL ops, iOS15 random.py.
"""

from __future__ import annotations

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.coreml_reference.types import check_size
from runtimes.session import Array


def _generator(call: Call) -> np.random.Generator:
    seed = call.int("seed", -1)
    return np.random.default_rng(None if seed < 0 else seed)


def _shape(call: Call) -> list[int]:
    shape = call.ints("shape")
    check_size(shape, np.dtype(np.float64).itemsize)
    return shape


@evaluates("random_uniform")
def random_uniform(call: Call) -> Array:
    """Half open: ``high`` itself is never given, not even by rounding; with both alike, ``low`` is."""
    low, high = np.float32(call.float("low", 0.0)), np.float32(call.float("high", 1.0))
    drawn = _generator(call).uniform(low, high, _shape(call)).astype(np.float32)
    return np.where(drawn >= high, low, drawn)


@evaluates("random_normal")
def random_normal(call: Call) -> Array:
    mean, deviation = call.float("mean", 0.0), call.float("stddev", 1.0)
    return _generator(call).normal(mean, deviation, _shape(call)).astype(np.float32)


@evaluates("random_bernoulli")
def random_bernoulli(call: Call) -> Array:
    """1 with the probability ``prob``, else 0, as floats."""
    return (_generator(call).random(_shape(call)) < call.float("prob", 0.5)).astype(np.float32)


@evaluates("random_categorical")
def random_categorical(call: Call) -> Array:
    """[..., size] indices along the last axis, as floats: those that MIL declares. By Gumbel's maximum: argmax(logits + noise)."""
    x, size = call.wide("x").astype(np.float64), call.int("size", 1)
    logits = x if call.str("mode", "logits") == "logits" else np.log(x)
    shape = [*x.shape[:-1], size, x.shape[-1]]
    check_size(shape, x.itemsize)
    noise = _generator(call).gumbel(size=shape)
    return np.asarray(np.argmax(logits[..., np.newaxis, :] + noise, axis=-1), np.float32)
