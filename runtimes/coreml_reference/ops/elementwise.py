"""Element-wise operations and casts.

Source: coremltools MIL ops, iOS15 elementwise_unary.py, elementwise_binary.py, iOS17 elementwise_unary.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from runtimes.coreml_reference.registry import Call, evaluates, widen
from runtimes.coreml_reference.types import CAST_NAMES, check_size
from runtimes.session import Array

Unary = Callable[[Array], Array]
Binary = Callable[[Array, Array], Array]

_erf_each = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    """Gauss error function to float32 accuracy; numpy has none, and boards have no scipy.

    math.erf at 512 nodes per unit, then a Taylor step of third order: with |h| <= 1/1024 the remainder is below 1e-12.
    """
    x64 = np.asarray(x, dtype=np.float64)
    clipped = np.clip(np.nan_to_num(x64, nan=0.0), -6.0, 6.0)
    index = np.rint(clipped * _ERF_NODES).astype(np.int64)
    node = index / _ERF_NODES
    h = clipped - node
    slope = 2.0 / math.sqrt(math.pi) * np.exp(-node * node)
    # Taylor around the node: f' = s, f'' = -2x s, f''' = (4x^2 - 2) s
    value = _erf_table()[index + 6 * _ERF_NODES] + slope * h * (1.0 - node * h + (4 * node * node - 2) * h * h / 6)
    return np.where(np.isnan(x64), np.nan, value).astype(np.float32)


_ERF_NODES = 512
_TABLE: list[Array] = []


def _erf_table() -> Array:
    if not _TABLE:
        nodes = np.arange(-6 * _ERF_NODES, 6 * _ERF_NODES + 1) / _ERF_NODES
        _TABLE.append(np.asarray(_erf_each(nodes), dtype=np.float64))
    return _TABLE[0]


UNARY: dict[str, Unary] = {
    "abs": np.abs,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "identity": lambda x: x,
    "round": np.rint,  # ties to even
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}

BINARY: dict[str, Binary] = {
    "add": np.add,
    "equal": np.equal,
    "floor_div": np.floor_divide,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,  # sign of the divisor, as numpy and TensorFlow
    "mul": np.multiply,
    "not_equal": np.not_equal,
    "pow": np.power,
    "sub": np.subtract,
}


@evaluates(*UNARY)
def unary(call: Call) -> Array:
    return UNARY[call.op.type](call.wide("x"))


@evaluates(*BINARY)
def binary(call: Call) -> Array:
    x, y = call.wide("x"), call.wide("y")
    check_size(np.broadcast_shapes(x.shape, y.shape), x.dtype.itemsize)
    return BINARY[call.op.type](x, y)


@evaluates("real_div")
def real_div(call: Call) -> Array:
    """True division; between integers the quotient is truncated to the declared integer type ("x / y, i32")."""
    x, y = call.wide("x"), call.wide("y")
    check_size(np.broadcast_shapes(x.shape, y.shape), x.dtype.itemsize)
    quotient = np.true_divide(x, y)
    return quotient if x.dtype.kind == "f" or y.dtype.kind == "f" else np.trunc(quotient).astype(np.int32)


@evaluates("logical_not")
def logical_not(call: Call) -> Array:
    return np.logical_not(call["x"])


@evaluates("clip")
def clip(call: Call) -> Array:
    return np.asarray(np.minimum(np.maximum(call.wide("x"), call.wide("alpha")), call.wide("beta")))


@evaluates("threshold")
def threshold(call: Call) -> Array:
    return np.maximum(call.wide("x"), call.wide("alpha"))


@evaluates("inverse")
def inverse(call: Call) -> Array:
    return np.reciprocal(call.wide("x") + np.float32(call.float("epsilon", 1e-4)))


@evaluates("log")
def log(call: Call) -> Array:
    return np.log(call.wide("x") + np.float32(call.float("epsilon", 1e-45)))


@evaluates("rsqrt")
def rsqrt(call: Call) -> Array:
    return np.float32(1) / np.sqrt(call.wide("x") + np.float32(call.float("epsilon", 1e-12)))


@evaluates("cast")
def cast(call: Call) -> Array:
    """Float to integer truncates toward zero and saturates at the target's range; NaN becomes 0; to bool is != 0."""
    name = call.str("dtype")
    if name not in CAST_NAMES:
        raise ValueError(f"cast to {name!r} is not known")
    return cast_to(call["x"], CAST_NAMES[name])


def cast_to(x: Array, dtype: str) -> Array:
    target = np.dtype(dtype)
    if target.kind in "iu" and x.dtype.kind == "f":
        info = np.iinfo(target)
        wide = np.nan_to_num(np.trunc(widen(x).astype(np.float64)), nan=0.0, posinf=info.max, neginf=info.min)
        return np.asarray(np.clip(wide, info.min, info.max).astype(target))
    return x.astype(target)


@evaluates("select")
def select(call: Call) -> Array:
    return np.where(call["cond"].astype(bool), call.wide("a"), call.wide("b"))
