"""Numbers that keep an operator from a pole (log 0, 0 / 0) still do so in a float16 program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from tests.compiler.exporters.coreml.support import Arrays, export, hub, parse, reference
from tests.compiler.exporters.coreml.test_reference_evaluator import evaluated

# The worst input for each: zero, where nothing but the guard is left.
GUARDED = {
    "the power of a spectrum": ("{ p = Mul(x, x)  s = Add(p, e)  l = Log(s)  y = Mul(l, f) }", 1e-10),
    "log of a sum": ("{ s = Add(x, e)  y = Log(s) }", 1e-10),
    "log of a maximum": ("{ s = Max(x, e)  y = Log(s) }", 1e-9),
    "log of a clipped value": ("{ s = Clip(x, e)  y = Log(s) }", 1e-9),
    "log behind a reshape": ("{ s = Add(x, e)  t = Identity(s)  y = Log(t) }", 1e-10),
    "a divisor": ("{ s = Add(x, e)  y = Div(x, s) }", 1e-12),
    "a divisor's root": ("{ s = Add(x, e)  r = Sqrt(s)  y = Div(x, r) }", 1e-12),
    "a clipped norm, as PyTorch normalizes": (
        "{ n = ReduceL2 <keepdims = 1> (x, a)  s = Clip(n, e)  y = Div(x, s) }",
        1e-12,
    ),
    "a reciprocal's product": ("{ s = Add(x, e)  r = Reciprocal(s)  y = Mul(x, r) }", 1e-12),
    "a power's product": ("{ s = Add(x, e)  r = Pow(s, h)  y = Mul(x, r) }", 1e-12),
}


@pytest.mark.parametrize("name", GUARDED)
def test_zero_stays_harmless(tmp_path: Path, name: str) -> None:
    body, epsilon = GUARDED[name]
    constants = {"e": np.float32(epsilon), "a": np.array([1]), "h": np.float32(-0.5), "f": np.float32(0.5)}
    used = {k: v for k, v in constants.items() if f"{k})" in body}
    model = hub(parse(f"net (float[2, 3] x) => (float[2, 3] y) {body}", **used))
    feeds: Arrays = {"x": np.float32([[0, 0, 0], [0.5, 0.0001, 2]])}
    got, want = evaluated(model, feeds, tmp_path, "fp16")["y"], reference(model, feeds)["y"]
    # Up to three roundings by 2**-11; where x is zero the guard itself is what counts.
    np.testing.assert_allclose(got, want, rtol=3 * 2**-11, atol=3 * 2**-11)


def test_what_is_kept_is_said(tmp_path: Path) -> None:
    model = hub(parse("net (float[2] x) => (float[2] y) { s = Add(x, e)  y = Log(s) }", e=np.float32(1e-10)))
    _, result = export(model, tmp_path, "fp16")
    assert any("Add_0" in note and "Log_1" in note for note in result.notes)


def test_an_ordinary_epsilon_keeps_nothing(tmp_path: Path) -> None:
    model = hub(parse("net (float[2] x) => (float[2] y) { s = Add(x, e)  y = Log(s) }", e=np.float32(0.125)))
    assert not export(model, tmp_path, "fp16")[1].notes


def test_basic_pitch_in_float16(realdata: Path, tmp_path: Path) -> None:
    """Its logarithm of x + 1e-10 meets silent bins, where float16 alone gives NaN; the authors' recordings have such bins."""
    folder = realdata / "basic_pitch"
    model = to_hub(onnx.load(folder / "nmp.onnx"), ImportOptions())
    windows = np.load(folder / "windows.npz")["windows"]
    name = model.graph.inputs[0].name or ""
    feeds: Arrays = {name: windows[:1].astype(np.float32)}
    got, want = evaluated(model, feeds, tmp_path, "fp16"), reference(model, feeds)
    for key, array in want.items():
        assert np.isfinite(got[key]).all()
        assert np.abs(got[key] - array).mean() <= 2**-11 * 4  # probabilities: a few roundings each, on average
