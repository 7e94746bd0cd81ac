"""float16 exceptions from data, executed: without them the package is off, with them it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.exporters.base import ExportOptions
from compiler.exporters.coreml import EXPORTER
from compiler.hubfacts import hub_inputs
from compiler.quantization.half_ranges import mark_float32
from profiles.schema import Precision
from runtimes.coreml_reference.session import open_package
from runtimes.session import Array, run_dataset
from tests.compiler.exporters.coreml.support import hub, parse, reference

ROUNDINGS = 8 * 2**-11  # a few roundings beside the float32 part, relative to the range
F32 = np.float32
# Each: body, constants, how large inputs are, how far they lie from zero.
CASES: dict[str, tuple[str, dict[str, Array], float, float]] = {
    "overflow": ("{ a = Mul(x, x) b = Mul(a, a) c = Sqrt(b) y = Sqrt(c) }", {}, 300.0, 0.0),
    "underflow": ("{ a = Mul(x, x) b = Mul(a, x) y = Mul(b, k) }", {"k": np.array([1e9], F32)}, 1e-3, 0.0),
    "cancellation": ("{ a = Tanh(x) b = Mul(a, s) c = Add(b, k) d = Sub(c, k) y = Mul(d, t) }", {
        "s": np.array([0.01], F32), "k": np.array([100.0], F32), "t": np.array([100.0], F32)}, 1.0, 0.0),
    "a variance as a difference of squares": (
        "{ q = Mul(x, x) e = ReduceMean<keepdims = 1>(q, l) m = ReduceMean<keepdims = 1>(x, l) n = Mul(m, m)"
        "  v = Sub(e, n) r = Relu(v) g = Add(r, k) s = Sqrt(g) d = Sub(x, m) y = Div(d, s) }",
        {"l": np.array([-1]), "k": np.array([1e-3], F32)}, 0.3, 4.0),
    "squares inside a norm": ("{ n = ReduceL2<keepdims = 1>(x, l) y = Div(x, n) }", {"l": np.array([-1])}, 200.0, 0.0),
    "squares inside a normalization": (
        "{ y = LayerNormalization<axis = -1, epsilon = 0.00001>(x, w) }", {"w": np.ones(8, F32)}, 2000.0, 0.0),
    "the sum of exponentials inside an operator": (
        "{ n = ReduceLogSumExp<keepdims = 1>(x, l) y = Sub(x, n) }", {"l": np.array([-1])}, 5.0, 12.0),
}  # fmt: skip


def samples(scale: float, offset: float) -> Array:
    rng = np.random.default_rng(0)
    return np.asarray((rng.standard_normal((64, 8)) * scale + offset).astype(np.float32))


def error(model: ir.Model, data: Array, want: Array, path: Path) -> float:
    EXPORTER.export(model, path, ExportOptions(Precision.FP16))
    with open_package(path) as session:
        got = run_dataset(session, {"x": data})["y"]
    off = np.abs(got.astype(np.float64) - want)
    return float(np.where(np.isfinite(off), off, np.inf).max() / np.ptp(want))


@pytest.mark.parametrize("name", CASES)
def test_with_its_marks_a_package_is_right(tmp_path: Path, name: str) -> None:
    body, constants, scale, offset = CASES[name]
    model = hub(parse(f"net (float[1,8] x) => (float[1,8] y) {body}", **constants))
    data = samples(scale, offset)
    want = np.concatenate([reference(model, {"x": row[np.newaxis]})["y"] for row in data])
    marked, reasons = mark_float32(model, make_dataset({"x": data}, hub_inputs(model), where="test"))
    assert reasons
    assert error(marked, data, want, tmp_path / "marked.mlpackage") < ROUNDINGS
    if "inside" not in name:  # the evaluator computes an operation of MIL in float32 within, where a device may not
        assert error(model, data, want, tmp_path / "plain.mlpackage") > 4 * ROUNDINGS


def test_an_operator_taken_apart_keeps_its_mark(tmp_path: Path) -> None:
    """Core ML has no LpNormalization: the parts it becomes are float32 where it was marked."""
    model = hub(parse("net (float[1,8] x) => (float[1,8] y) { y = LpNormalization<axis = -1>(x) }"))
    data = samples(200.0, 0.0)
    marked, reasons = mark_float32(model, make_dataset({"x": data}, hub_inputs(model), where="test"))
    assert "inside it" in next(iter(reasons.values()))
    want = np.concatenate([reference(model, {"x": row[np.newaxis]})["y"] for row in data])
    assert error(marked, data, want, tmp_path / "m.mlpackage") < ROUNDINGS


def test_bodies_of_loops_are_float32(tmp_path: Path) -> None:
    """x**(2**5), beyond float16, and the root of it as often, in one loop each."""
    text = """net (float[1,8] x, int64[1] n) => (float[1,8] y) {
      steps = Squeeze(n)
      big = Loop(steps, , x) <body = square (int64 i, bool c, float[1,8] v) => (bool d, float[1,8] w) {
        d = Identity(c) w = Mul(v, v) }>
      y = Loop(steps, , big) <body = root (int64 j, bool e, float[1,8] p) => (bool f, float[1,8] q) {
        f = Identity(e) q = Sqrt(p) }>
    }"""
    model = hub(parse(text))
    feeds = {"x": np.linspace(1.5, 9, 8, dtype=np.float32)[np.newaxis], "n": np.array([5])}
    path = EXPORTER.export(model, tmp_path / "m.mlpackage", ExportOptions(Precision.FP16)).path
    with open_package(path) as session:
        fed = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in session.inputs}
        got = session.run(fed)["y"]
    assert np.abs(got - feeds["x"]).max() / np.ptp(feeds["x"]) < ROUNDINGS


def test_ordinary_nets_keep_nothing() -> None:
    """A residual, a softmax by hand and a normalization on ordinary values: nothing is lost, nothing is marked."""
    text = """net (float[1,8] x) => (float[1,8] y) {
      a = MatMul(x, w) r = Add(a, x) n = LayerNormalization<axis = -1>(r, g)
      e = Exp(n) s = ReduceSum<keepdims = 1>(e, l) y = Div(e, s) }"""
    weights = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    model = hub(parse(text, w=weights, g=np.ones(8, F32), l=np.array([-1])))
    data = make_dataset({"x": samples(1.0, 0.0)}, hub_inputs(model), where="test")
    assert mark_float32(model, data)[1] == {}
