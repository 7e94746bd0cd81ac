"""Loop and If as while_loop and cond, against onnxruntime: step counts and conditions of run time, nesting, outer values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.errors import UnsupportedModel
from runtimes.registry import open_session
from tests.compiler.exporters.coreml.support import Arrays, export, hub, parse, reference, relative_error

# x is seen from inside: it is no input of the body.
COUNTED = """g (float[2,3] x, int64[1] n) => (float[2,3] z) {
  s = Abs(x)
  y = Loop(n, , x) <body = b (int64 i, bool c, float[2,3] a) => (bool d, float[2,3] e) {
    d = Identity(c)
    f = Sin(a)
    h = Cast<to = 1>(i)
    k = Mul(f, h)
    e = Add(k, s)
  }>
  z = Mul(y, s)
}"""
# Doubles until the sum reaches the limit, which n alone does not tell.
CONDITIONED = """g (float[2] x, float[1] limit) => (float[2] y, int64[1] steps) {
  y, steps = Loop(most, true_, x, zero) <body = b (int64 i, bool c, float[2] a, int64[1] m) => (bool d, float[2] e, int64[1] k) {
    e = Add(a, a)
    k = Add(m, one)
    t = ReduceSum<keepdims = 0>(e)
    l = Squeeze(limit)
    d = Less(t, l)
  }>
}"""
# A loop within a loop, and an If within that.
NESTED = """g (float[3] x, int64[1] n) => (float[3] y) {
  y = Loop(n, , x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
    d = Identity(c)
    e = Loop(two, , a) <body = b2 (int64 i2, bool c2, float[3] a2) => (bool d2, float[3] e2) {
      d2 = Identity(c2)
      t = ReduceSum<keepdims = 0>(a2)
      p = Less(t, zero)
      r = If(p) <then_branch = u () => (float[3] v) { v = Neg(a2) }, else_branch = w () => (float[3] q) { q = Sub(a2, x) }>
      e2 = Mul(r, half)
    }>
  }>
}"""


def conditioned(most: int) -> ir.Model:
    constants = {
        "most": np.int64(most),
        "true_": np.bool_(True),
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
    }
    return hub(parse(CONDITIONED, **{name: np.asarray(value) for name, value in constants.items()}))


def nested() -> ir.Model:
    return hub(parse(NESTED, two=np.array([2]), zero=np.array(0, np.float32), half=np.array(0.5, np.float32)))


def answers(
    model: ir.Model, feeds: list[Arrays], folder: Path, precision: str = "fp32", target: str = "iOS17"
) -> float:
    """The largest error over all ``feeds``."""
    path, _ = export(model, folder, precision, target)
    with open_session(path, runtime="coreml-reference") as session:
        return max(relative_error(session.run(one), reference(model, one)) for one in feeds)


def counted_feeds() -> list[Arrays]:
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    return [{"x": x, "n": np.array([n])} for n in (0, 1, 5)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_counted(tmp_path: Path, precision: str) -> None:
    """float16 rounds s, the product and the result behind the loop, not what is carried; five steps pass s's rounding on."""
    error = answers(hub(parse(COUNTED)), counted_feeds(), tmp_path, precision)
    assert error <= (1e-6 if precision == "fp32" else 8 * 2**-11)


@pytest.mark.parametrize("most", [3, 2**63 - 1])
def test_conditioned(tmp_path: Path, most: int) -> None:
    feeds = [{"x": np.array([1, 2], np.float32), "limit": np.array([n], np.float32)} for n in (0, 5, 13, 1000)]
    assert answers(conditioned(most), feeds, tmp_path) == 0


def test_nested(tmp_path: Path) -> None:
    feeds = [{"x": np.array(x, np.float32), "n": np.array([n])} for x in ([1, 2, 3], [-1, 0, -4]) for n in (0, 1, 4)]
    assert answers(nested(), feeds, tmp_path) <= 1e-6


def test_what_a_body_lacks_is_named(tmp_path: Path) -> None:
    model = hub(
        parse("""g (float[2] x, int64[1] n) => (float[2] y) {
          y = Loop(n, , x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e) {
            d = Identity(c) e = Bernoulli(a)
          }>
        }""")
    )
    with pytest.raises(UnsupportedModel, match="inside it, Bernoulli"):
        export(model, tmp_path)


def test_a_body_without_shapes(tmp_path: Path) -> None:
    """As PyTorch writes it: the body's inputs and the loop's result say their types alone; a number is carried as well."""
    text = """g (float[2,3] x, int64[1] n) => (float[2,3] z) {
      y, u = Loop(n, , x, start) <body = b (int64 i, bool c, float[] a, float p) => (bool d, float[] e, float q) {
        d = Identity(c)
        q = Add(p, p)
        e = Sin(a)
      }>
      w = Neg(y)
      z = Add(w, u)
    }"""
    model = hub(parse(text, start=np.array(1, np.float32)))
    loop = next(node for node in model.graph if node.op_type == "Loop")
    for value in (*loop.attributes["body"].as_graph().inputs[2:], *loop.outputs):
        value.shape = None
    assert answers(model, counted_feeds(), tmp_path) <= 1e-6


def test_a_carried_value_that_grows_is_refused(tmp_path: Path) -> None:
    model = hub(
        parse("""g (float[2] x, int64[1] n) => (float[2] y) {
          y = Loop(n, , x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[4] e) {
            d = Identity(c)
            e = Concat<axis = 0>(a, x)
          }>
        }""")
    )
    with pytest.raises(UnsupportedModel, match="Loop"):
        export(model, tmp_path)
