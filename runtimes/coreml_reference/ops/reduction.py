"""Reductions. Source: coremltools MIL ops, iOS15 reduction.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.session import Array

Reduce = Callable[..., Any]


def _log_sum_exp(x: Array, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    peak = np.max(x, axis=axis, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, 0)
    total = np.log(np.sum(np.exp(x - peak), axis=axis, keepdims=True)) + peak
    return np.asarray(total if keepdims else np.squeeze(total, axis=axis))


REDUCTIONS: dict[str, Reduce] = {
    "reduce_l1_norm": lambda x, axis, keepdims: np.sum(np.abs(x), axis=axis, keepdims=keepdims),
    "reduce_l2_norm": lambda x, axis, keepdims: np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims)),
    "reduce_log_sum": lambda x, axis, keepdims: np.log(np.sum(x, axis=axis, keepdims=keepdims)),
    "reduce_log_sum_exp": _log_sum_exp,
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, axis, keepdims: np.sum(np.square(x), axis=axis, keepdims=keepdims),
}


@evaluates(*REDUCTIONS)
def reduce(call: Call) -> Array:
    """Over ``axes``, all if absent; integers stay integers, and their mean is truncated."""
    x = call.wide("x")
    axes = tuple(call.ints("axes")) if call.has("axes") else None
    out = np.asarray(REDUCTIONS[call.op.type](x, axis=axes, keepdims=call.bool("keep_dims")))
    return out if out.dtype.kind == x.dtype.kind else np.trunc(out).astype(x.dtype)


@evaluates("reduce_argmax")
def reduce_argmax(call: Call) -> Array:
    return _arg(call, np.argmax)


@evaluates("reduce_argmin")
def reduce_argmin(call: Call) -> Array:
    return _arg(call, np.argmin)


def _arg(call: Call, choose: Reduce) -> Array:
    """The first index of the extreme value along ``axis`` (-1)."""
    return np.asarray(choose(call["x"], axis=call.int("axis", -1), keepdims=call.bool("keep_dims")))
