"""Matrix products. Source: coremltools MIL ops, iOS15 linear.py, iOS18 transformers.py."""

from __future__ import annotations

import math

import numpy as np

from runtimes.coreml_reference.ops.activation import softmax
from runtimes.coreml_reference.registry import Call, evaluates, widen
from runtimes.session import Array


@evaluates("linear")
def linear(call: Call) -> Array:
    """x [*, D_in] times weight [D_out, D_in] transposed, plus bias [D_out]."""
    out = np.matmul(call.wide("x"), call.wide("weight").T)
    bias = call.get("bias")
    return np.asarray(out if bias is None else out + bias)


@evaluates("matmul")
def matmul(call: Call) -> Array:
    """numpy's matmul; ``transpose_x`` and ``transpose_y`` swap the last two axes of operands of rank 2 or more."""
    x, y = call.wide("x"), call.wide("y")
    if call.bool("transpose_x") and x.ndim > 1:
        x = x.swapaxes(-1, -2)
    if call.bool("transpose_y") and y.ndim > 1:
        y = y.swapaxes(-1, -2)
    return np.asarray(np.matmul(x, y))


@evaluates("einsum")
def einsum(call: Call) -> Array:
    values = [widen(v) for v in call.many("values")]
    return np.asarray(np.einsum(call.str("equation"), *values, optimize=True))


@evaluates("scaled_dot_product_attention")
def attention(call: Call) -> Array:
    """softmax(Q K^T / sqrt(E) + mask) V; a boolean mask keeps where it is true."""
    query, key, value = call.wide("query"), call.wide("key"), call.wide("value")
    scores = np.matmul(query, key.swapaxes(-1, -2)) / np.float32(math.sqrt(query.shape[-1]))
    if call.has("attn_mask"):
        mask = call.wide("attn_mask")
        scores = np.where(mask, scores, np.float32(-np.inf)) if mask.dtype == np.bool_ else scores + mask
    return np.asarray(np.matmul(softmax(scores, -1), value))
