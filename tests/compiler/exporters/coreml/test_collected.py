"""What loops collect of all their steps, in MIL's lists, and Scan over more steps than are written out, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.errors import UnsupportedModel
from runtimes.errors import InferenceFailed
from runtimes.registry import open_session
from tests.compiler.exporters.coreml.support import export, hub, parse
from tests.compiler.exporters.coreml.test_control import answers

# A number, a vector, an integer and a truth in every step; n is the number of steps where the source says so.
COLLECTING = """g (float[3] x, int64[1] n) => (float[3] z, float[5] s, float[5,3] v, int64[5,1] k, bool[5,3] t) {
  z, s, v, k, t = Loop(STEPS, , x) <body = b (int64 i, bool c, float[3] a)
      => (bool d, float[3] e, float sum, float[3] f, int64[1] num, bool[3] pos) {
    d = Identity(c)
    e = Sin(a)
    sum = ReduceSum<keepdims = 0>(e)
    f = Add(e, x)
    num = Add(i, n)
    pos = Less(a, x)
  }>
}"""
# Sums over time and all that leads to them; forwards and backwards, and along other axes.
SCANNED = """g (float[2] start, float[2,T] x, float[T,2] w) => (float[2] last, float[2,T] every, float[T,2] turned) {
  last, every, turned = Scan<num_scan_inputs = 2, scan_input_axes = [1, 0], scan_input_directions = [DIR, 0],
      scan_output_axes = [-1, 0], scan_output_directions = [0, DIR],
      body = b (float[2] s, float[2] a, float[2] b) => (float[2] e, float[2] f, float[2] g) {
    m = Mul(a, b)
    h = Mul(s, half)
    e = Add(h, m)
    f = Identity(e)
    g = Neg(e)
  }>(start, x, w)
}"""


def feeds(*steps: int) -> list[dict[str, np.ndarray]]:
    x = np.random.default_rng(0).standard_normal(3).astype(np.float32)
    return [{"x": x, "n": np.array([n])} for n in steps]


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_a_known_number_of_steps(tmp_path: Path, target: str) -> None:
    model = hub(parse(COLLECTING.replace("STEPS", "five"), five=np.array(5)))
    assert answers(model, feeds(0, 7), tmp_path, target=target) <= 1e-6


def test_a_number_of_run_time(tmp_path: Path) -> None:
    """The source says that there are five results; with other numbers of steps there are not, and the program says so."""
    model = hub(parse(COLLECTING.replace("STEPS", "n")))
    assert answers(model, feeds(5), tmp_path) <= 1e-6
    path, _ = export(model, tmp_path)
    for wrong in feeds(4, 6):
        with open_session(path, runtime="coreml-reference") as session, pytest.raises(InferenceFailed, match="reshape"):
            session.run(wrong)


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scan(tmp_path: Path, backwards: int, precision: str) -> None:
    text = SCANNED.replace("DIR", str(backwards)).replace("T", "600")
    model = hub(parse(text, half=np.array(0.5, np.float32)))
    rng = np.random.default_rng(1)
    sizes = {"start": (2,), "x": (2, 600), "w": (600, 2)}
    one = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    # float16 rounds the operands and the results alone: bodies compute in float32.
    assert answers(model, [one], tmp_path, precision) <= (1e-6 if precision == "fp32" else 4 * 2**-11)


def test_a_scan_within_a_loop(tmp_path: Path) -> None:
    model = hub(
        parse("""g (float[4] x, int64[1] n) => (float[4] y) {
          y = Loop(n, , x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] e) {
            d = Identity(c)
            t, e = Scan<num_scan_inputs = 1, body = q (float s, float u) => (float v, float w) {
              v = Add(s, u)
              w = Sin(v)
            }>(zero, a)
          }>
        }""", zero=np.array(0, np.float32))
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal(4).astype(np.float32)
    assert answers(model, [{"x": x, "n": np.array([n])} for n in (0, 1, 3)], tmp_path) <= 1e-6


def test_elements_that_no_list_holds_are_refused(tmp_path: Path) -> None:
    model = hub(
        parse("""g (float[2] x, int64[1] n) => (float[2] y, uint8[3,2] all) {
          y, all = Loop(n, , x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e, uint8[2] f) {
            d = Identity(c) e = Add(a, a) f = Cast<to = 2>(e)
          }>
        }""")
    )
    with pytest.raises(UnsupportedModel, match="no list holds UINT8"):
        export(model, tmp_path)
