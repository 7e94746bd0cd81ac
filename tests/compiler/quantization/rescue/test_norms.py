"""Equalisation through layer normalisation: exact in float, and outliers no longer take the range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.hub_session import open_hub
from compiler.hubfacts import hub_inputs
from compiler.importers import import_model
from compiler.importers.base import ImportOptions
from compiler.passes import clean_up
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import candidate, make_bench
from compiler.quantization.rescue.ladder import Goals, climb
from compiler.quantization.rescue.norms import equalise_norms, equalised_norms, factors, find_joints
from runtimes.session import Array, run_dataset
from tests.compiler.hub_models import hub

OUTLIERS = (1, 5)
NET = """
net (float[1, 4, 8] x) => (float[1, 4, 6] y, float[4, 6] z) {
  NORM
  READERS
}
"""
LAYER = "n = LayerNormalization AXIS (x, gain, bias)"
RMS = """squares = Mul (x, x)
  power = ReduceMean <keepdims = 1> (squares, last)
  safe = Add (power, epsilon)
  root = Sqrt (safe)
  unit = Div (x, root)
  n = Mul (unit, gain)"""
WRITTEN_OUT = """mean = ReduceMean <keepdims = 1> (x, last)
  centred = Sub (x, mean)
  squares = Mul (centred, centred)
  power = ReduceMean <keepdims = 1> (squares, last)
  safe = Add (power, epsilon)
  root = Sqrt (safe)
  unit = Div (centred, root)
  grown = Mul (gain, unit)
  n = Add (bias, grown)"""
NORMS = {"layer": LAYER, "rms": RMS, "written out": WRITTEN_OUT}
TWO = """y = MatMul (n, w1)
  rows = Reshape (n, shape)
  z = Gemm <transB = 1> (rows, w2, b2)"""
SHOWN = "y = MatMul (n, w1)\n  doubled = Add (n, n)\n  r = MatMul (doubled, w3)\n  z = Reshape (r, shape6)"


def net(readers: str = TWO, axis: str = "<axis = -1>", norm: str = LAYER) -> ir.Model:
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
        "row": rng.uniform(0.5, 1.5, (4, 1)),
    }
    text = NET.replace("READERS", readers).replace("NORM", norm).replace("AXIS", axis)
    if "epsilon" in text:
        arrays["epsilon"] = np.asarray(1e-5)
    used = {name: np.asarray(a, np.float32) for name, a in arrays.items() if name in text}
    if "last)" in text:
        used["last"] = np.asarray([-1], np.int64)
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


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("strength", [0.5, 0.75])
def test_the_function_stays_and_the_channels_become_even(strength: float, norm: str) -> None:
    model = net(norm=NORMS[norm])
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


@pytest.mark.parametrize(
    "norm",
    [
        RMS.replace("gain", "row"),  # per row instead of per channel
        RMS.replace("unit, gain", "unit, x"),  # no constant
        WRITTEN_OUT.replace("gain", "row"),
        WRITTEN_OUT.replace("gain, unit", "x, unit"),
    ],
)
def test_near_misses_of_written_out_norms_are_left_alone(norm: str) -> None:
    assert not find_joints(net(norm=norm))


def test_the_operator_of_opset_23_is_a_joint_once_it_is_imported(tmp_path: Path) -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]>
    net (float[1, 4, 8] x) => (float[1, 4, 6] y) {
      n = RMSNormalization <axis = -1> (x, gain)
      y = MatMul (n, w)
    }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in (("gain", (8,)), ("w", (8, 6))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(shape, 0.5, np.float32), name))
    onnx.save(proto, tmp_path / "net.onnx")
    model = clean_up(import_model(str(tmp_path / "net.onnx"), ImportOptions(batch=1)).model)
    assert len(find_joints(model)) == 1


@pytest.mark.parametrize("norm", NORMS)
def test_the_rung_gains_what_outliers_cost(norm: str) -> None:
    model = net(norm=NORMS[norm])
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
