"""Equalisation through layer normalisation: exact in float, and outliers no longer take the range."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.hub_session import open_hub
from compiler.hubfacts import hub_inputs
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import candidate, make_bench
from compiler.quantization.rescue.ladder import Goals, climb
from compiler.quantization.rescue.norms import equalise_norms, equalised_norms, factors, find_joints
from runtimes.session import Array, run_dataset
from tests.compiler.hub_models import hub

OUTLIERS = (1, 5)
NET = """
net (float[1, 4, 8] x) => (float[1, 4, 6] y, float[4, 6] z) {
  n = LayerNormalization AXIS (x, gain, bias)
  READERS
}
"""
TWO = """y = MatMul (n, w1)
  rows = Reshape (n, shape)
  z = Gemm <transB = 1> (rows, w2, b2)"""
SHOWN = "y = MatMul (n, w1)\n  doubled = Add (n, n)\n  r = MatMul (doubled, w3)\n  z = Reshape (r, shape6)"


def net(readers: str = TWO, axis: str = "<axis = -1>") -> ir.Model:
    """Two of eight channels are a hundred times as wide as the others, and their weights a hundredth."""
    rng = np.random.default_rng(0)
    wide = np.where(np.isin(np.arange(8), OUTLIERS), 100.0, 1.0)
    arrays = {
        "gain": wide * rng.uniform(0.5, 1.5, 8),
        "bias": wide * rng.standard_normal(8),
        "w1": rng.standard_normal((8, 6)) / wide[:, None],
        "w2": rng.standard_normal((6, 8)) / wide,
        "w3": rng.standard_normal((8, 6)) / wide[:, None],
        "b2": rng.standard_normal(6),
    }
    text = NET.replace("READERS", readers).replace("AXIS", axis)
    used = {name: np.asarray(a, np.float32) for name, a in arrays.items() if name in text}
    if "shape)" in text:
        used["shape"] = np.asarray([4, 8], np.int64)
    if "shape6" in text:
        used["shape6"] = np.asarray([4, 6], np.int64)
    return hub(text, **used)


def data(model: ir.Model) -> Dataset:
    inputs = hub_inputs(model)
    samples = np.random.default_rng(1).standard_normal((64, 4, 8)).astype(np.float32)
    return make_dataset({inputs[0].name: samples}, inputs, where="test")


def outputs(model: ir.Model, samples: Dataset, *taps: str) -> dict[str, Array]:
    with open_hub(model, taps=list(taps)) as session:
        return dict(run_dataset(session, samples.feeds))


@pytest.mark.parametrize("strength", [0.5, 0.75])
def test_the_function_stays_and_the_channels_become_even(strength: float) -> None:
    model = net()
    samples, joints = data(model), find_joints(model)
    assert len(joints) == 1 and len(joints[0].readers) == 2
    result = equalised_norms(model, joints, samples, strength)
    before, after = (outputs(m, samples, "n") for m in (model, result))
    for name in ("y", "z"):
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=1e-6 * np.abs(before[name]).max())
    spread_before, spread_after = (np.abs(found["n"]).max(axis=(0, 1)) for found in (before, after))
    assert spread_before.max() / spread_before.min() > 100
    assert spread_after.max() / spread_after.min() < 10
    np.testing.assert_allclose(spread_after.max(), spread_before.max(), rtol=1e-5)


@pytest.mark.parametrize("model", [net(SHOWN), net(axis="<axis = 2>"), net(axis="<axis = 1>")])
def test_only_norms_whose_every_reader_can_take_the_factors_are_joints(model: ir.Model) -> None:
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    over_last = norm.attributes["axis"].as_int() in (-1, 2)
    fits = over_last and not any(node.op_type == "Add" for node in model.graph)
    assert bool(find_joints(model)) == fits


def test_the_rung_gains_what_outliers_cost() -> None:
    model = net()
    bench = make_bench(model, data(model))
    start = candidate(model, bench.train, QuantizeOptions())
    scores = [bench.score(made.quantized().model).sqnr_db for _, made in equalise_norms(start, bench)]
    assert max(scores) > bench.score(start.quantized().model).sqnr_db + 10


def test_the_ladder_keeps_it() -> None:
    model = net()
    found = climb(model, data(model), QuantizeOptions(), Goals(min_sqnr_db=35.0))
    assert any(a.rung == "equalisation through norms" and a.kept for a in found.attempts), found.attempts


def test_channels_that_hold_nothing_stay_as_they_are() -> None:
    s = factors(np.array([0.0, 4.0, 1.0]), np.array([1.0, 1.0, 0.0]), 0.5)
    assert s[0] == 1.0 and s[2] == 1.0
