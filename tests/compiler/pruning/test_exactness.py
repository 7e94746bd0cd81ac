"""Dead channels leave and nothing changes: every pattern of coupling, against onnxruntime on the whole net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from compiler.pruning import PruneOptions, perform, plan
from runtimes.session import Array
from tests.compiler.pruning.nets import Shapes, answers, feeds, input_shape, net, parameters, weight_shape

DEAD = (1, 4)  # channels whose producers, shifts and norms are all zero


@dataclass(frozen=True)
class Case:
    text: str
    weights: Shapes
    dead: tuple[str, ...]  # initializers whose axis-0 entries DEAD are zeroed
    expect: Mapping[str, list[int]]  # shapes after the cut
    share: float
    constants: Mapping[str, Array] = field(default_factory=dict)
    keep: tuple[str, ...] = ()


CHAIN = Case(
    """g (float[1, 3, 8, 8] x) => (float[1, 5, 6, 6] y) {
      a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
      r = Relu(a)
      y = Conv(r, w2, b2)
    }""",
    {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (5, 8, 3, 3), "b2": (5,)},
    ("w1", "b1"),
    {"w1": [6, 3, 3, 3], "b1": [6], "w2": [5, 6, 3, 3], "b2": [5]},
    0.25,
)
BATCH_NORM = Case(
    """g (float[1, 3, 8, 8] x) => (float[1, 5, 6, 6] y) {
      a = Conv<pads = [1, 1, 1, 1]>(x, w1)
      n = BatchNormalization(a, gamma, beta, mean, var)
      r = Relu(n)
      y = Conv(r, w2)
    }""",
    {"w1": (8, 3, 3, 3), "gamma": (8,), "beta": (8,), "mean": (8,), "var": (8,), "w2": (5, 8, 3, 3)},
    ("gamma", "beta"),
    {"w1": [6, 3, 3, 3], "gamma": [6], "beta": [6], "mean": [6], "var": [6], "w2": [5, 6, 3, 3]},
    0.25,
)
RESIDUAL = Case(
    """g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y) {
      a = Conv(x, w1, b1)
      r = Relu(a)
      m = Conv<pads = [1, 1, 1, 1]>(r, w2, b2)
      s = Add(m, r)
      t = PRelu(s, slope)
      y = Conv(t, w3)
    }""",
    {"w1": (8, 3, 1, 1), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "slope": (8, 1, 1), "w3": (5, 8, 1, 1)},
    ("w1", "b1", "w2", "b2"),
    {"w1": [6, 3, 1, 1], "w2": [6, 6, 3, 3], "b2": [6], "slope": [6, 1, 1], "w3": [5, 6, 1, 1]},
    0.25,
)
INVERTED_RESIDUAL = Case(
    """g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
    <float lo = {0.0}, float hi = {6.0}> {
      a = Conv(x, w1, b1)
      r = Clip(a, lo, hi)
      d = Conv<group = 8, pads = [1, 1, 1, 1]>(r, w2, b2)
      q = Clip(d, lo, hi)
      p = Conv(q, w3, b3)
      y = Add(p, x)
    }""",
    {"w1": (8, 4, 1, 1), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (4, 8, 1, 1), "b3": (4,)},
    ("w1", "b1", "b2"),
    {"w1": [6, 4, 1, 1], "w2": [6, 1, 3, 3], "b2": [6], "w3": [4, 6, 1, 1], "b3": [4]},
    0.25,
)
SQUEEZE_EXCITE = Case(
    """g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y) {
      a = Conv(x, w1, b1)
      r = Relu(a)
      s = GlobalAveragePool(r)
      e = Conv(s, w2, b2)
      f = Relu(e)
      h = Conv(f, w3, b3)
      k = HardSigmoid(h)
      m = Mul(r, k)
      y = Conv(m, w4)
    }""",
    {
        "w1": (8, 3, 1, 1), "b1": (8,), "w2": (4, 8, 1, 1), "b2": (4,),
        "w3": (8, 4, 1, 1), "b3": (8,), "w4": (5, 8, 1, 1),
    },
    ("w1", "b1"),
    {"w1": [6, 3, 1, 1], "w2": [4, 6, 1, 1], "w3": [6, 4, 1, 1], "b3": [6], "w4": [5, 6, 1, 1]},
    0.25,
    keep=("Conv_3",),
)  # fmt: skip
FLATTEN = Case(
    """g (float[1, 3, 4, 4] x) => (float[1, 5] y) {
      a = Conv(x, w1, b1)
      r = Relu(a)
      f = Reshape(r, shape)
      y = Gemm<transB = 1>(f, w2, b2)
    }""",
    {"w1": (8, 3, 1, 1), "b1": (8,), "w2": (5, 128), "b2": (5,)},
    ("w1", "b1"),
    {"w1": [6, 3, 1, 1], "w2": [5, 96], "b2": [5]},
    0.25,
    {"shape": np.array([1, 128])},
)
FLATTEN_CHANNELS_LAST = Case(
    """g (float[1, 3, 4, 4] x) => (float[1, 5] y) {
      a = Conv(x, w1, b1)
      r = Relu(a)
      t = Transpose<perm = [0, 2, 3, 1]>(r)
      f = Reshape(t, shape)
      m = MatMul(f, w2)
      y = Add(m, b2)
    }""",
    {"w1": (8, 3, 1, 1), "b1": (8,), "w2": (128, 5), "b2": (5,)},
    ("w1", "b1"),
    {"w1": [6, 3, 1, 1], "w2": [96, 5], "b2": [5]},
    0.25,
    {"shape": np.array([1, -1])},
)
CONCAT = Case(
    """g (float[1, 3, 4, 4] x) => (float[1, 5, 4, 4] y) {
      a = Conv(x, w1, b1)
      b = Conv(x, w0, b0)
      c = Concat<axis = 1>(b, a)
      r = Relu(c)
      y = Conv(r, w2)
    }""",
    {"w1": (8, 3, 1, 1), "b1": (8,), "w0": (6, 3, 1, 1), "b0": (6,), "w2": (5, 14, 1, 1)},
    ("w1", "b1"),
    {"w1": [6, 3, 1, 1], "w0": [6, 3, 1, 1], "w2": [5, 12, 1, 1]},
    2 / 14,
)
CASES = {
    "chain": CHAIN, "batch-norm": BATCH_NORM, "residual": RESIDUAL, "inverted-residual": INVERTED_RESIDUAL,
    "squeeze-excite": SQUEEZE_EXCITE, "flatten": FLATTEN, "flatten-channels-last": FLATTEN_CHANNELS_LAST, "concat": CONCAT,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_dead_channels_leave_without_a_trace(name: str) -> None:
    case = CASES[name]
    model = net(case.text, case.weights, constants=case.constants, dead=dict.fromkeys(case.dead, DEAD))
    data = feeds(input_shape(model))
    # The squeeze-excite case keeps its bottleneck, so that only the coupled group is cut.
    options = PruneOptions(share=case.share, granularity=1, keep=case.keep)
    made = plan(model, options, data)
    cut = perform(model, made)
    assert {group.removed for group in made.groups if group.removed} == {DEAD}
    assert {key: weight_shape(cut, key) for key in case.expect} == dict(case.expect)
    whole = answers(model, data)
    # Only the order of float32 sums changes: a few ulp of the largest output.
    np.testing.assert_allclose(
        answers(cut, data), whole, rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(whole).max()
    )
    assert made.after.parameters == parameters(cut)
    assert weight_shape(model, "w1")[0] == 8, "the caller's model was modified"
