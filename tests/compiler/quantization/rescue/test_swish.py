"""Equalisation through hard swish and SiLU: exact in float, even channels behind, integers in every format that has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.calibration.observers import OBSERVERS
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hub_session import open_hub
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import candidate, make_bench
from compiler.quantization.rescue.ladder import Goals, climb
from compiler.quantization.rescue.ranges import biases_anew, ranges_anew
from compiler.quantization.rescue.swish import equalise_swish, equalised_swish, find_bridges
from profiles.schema import Precision
from runtimes.session import run_dataset
from tests.compiler.hub_models import hub
from tests.compiler.quantization.rescue.nets import samples

NET = """
net (float[1, 3, 8, 8] image) => (float[1, 5, 8, 8] y) {
  a = Conv (image, w1, b1)
  ACTIVATION
  y = Conv SECOND (s, w2)
}
"""
HARD = "s = HardSwish (a)"
SILU = "g = Sigmoid (a)\n  s = Mul (g, a)"
SHOWN = "g = Sigmoid (a)\n  t = Mul (g, a)\n  s = Add (t, a)"


def net(activation: str = HARD, *, depthwise: bool = False, ratio: float = 1000.0) -> ir.Model:
    """16 channels whose ranges lie up to ``ratio`` apart, and count alike in the answer."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(8.0, 8.0 / ratio, 16)
    arrays = {
        "w1": rng.uniform(-1, 1, (16, 3, 1, 1)) * spread[:, None, None, None],
        "b1": 0.2 * spread,
        "w2": rng.standard_normal((16, 1, 1, 1)) / spread[:, None, None, None]
        if depthwise
        else rng.standard_normal((5, 16, 1, 1)) / spread[:, None, None],
    }
    text = NET.replace("ACTIVATION", activation).replace("SECOND", "<group = 16>" if depthwise else "")
    text = text.replace("float[1, 5, 8, 8] y", "float[1, 16, 8, 8] y") if depthwise else text
    return hub(text, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})


@pytest.mark.parametrize("activation", [HARD, SILU])
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_function_stays_and_the_channels_become_even(activation: str, depthwise: bool) -> None:
    model = net(activation, depthwise=depthwise)
    data, bridges = samples(model), find_bridges(model)
    assert len(bridges) == 1
    result, count = equalised_swish(model, bridges, data)
    assert count == 1
    taps = ["a", "s"]
    found = []
    for one in (model, result):
        with open_hub(one, taps=taps) as session:
            found.append(run_dataset(session, data.feeds))
    before, after = found
    np.testing.assert_allclose(after["y"], before["y"], rtol=0, atol=1e-5 * np.abs(before["y"]).max())
    for name in taps:
        wide, narrow = (np.ptp(f[name], axis=(0, 2, 3)) for f in (before, after))
        assert wide.max() / wide.min() > 100
        assert narrow.max() / narrow.min() < (wide.max() / wide.min()) ** (0.3 if depthwise else 0.7)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (net(SHOWN), "the activation is read by an Add as well"),
        (net("g = Sigmoid (a)\n  s = Mul (g, g)"), "the product is of the gate with itself"),
        (net("g = Tanh (a)\n  s = Mul (g, a)"), "no gate between 0 and 1"),
    ],
)
def test_near_misses_are_no_bridges(model: ir.Model, why: str) -> None:
    assert not find_bridges(model), why


def test_even_channels_are_left_as_they_are() -> None:
    model = net(ratio=1.0, depthwise=True)
    result, count = equalised_swish(model, find_bridges(model), samples(model))
    assert count == 0 and result is model


@pytest.mark.parametrize("activation", [HARD, SILU])
def test_the_rung_gains_what_uneven_channels_cost(activation: str) -> None:
    model = net(activation, depthwise=True)
    bench = make_bench(model, samples(model))
    start = candidate(model, bench.train, QuantizeOptions())
    made = [one for _, one in equalise_swish(start, bench)]
    base = bench.score(start.quantized().model).sqnr_db
    assert max(bench.score(one.quantized().model).sqnr_db for one in made) > base + 10
    assert not made[0].spec.float_nodes and not made[0].spec.wide_nodes


def test_ranges_are_chosen_anew_for_a_net_that_was_rescaled_and_for_no_other() -> None:
    model = net(depthwise=True)
    bench = make_bench(model, samples(model))
    start = candidate(model, bench.train, QuantizeOptions(observer="min-max"))
    assert not list(ranges_anew(start, bench)) and not list(biases_anew(start, bench))
    rescaled = next(one for _, one in equalise_swish(start, bench))
    offered = {one.options.observer for _, one in ranges_anew(rescaled, bench)}
    assert offered == set(OBSERVERS.names())
    corrected = [one for _, one in biases_anew(rescaled, bench)]
    assert corrected and not list(biases_anew(corrected[0], bench))


@pytest.mark.parametrize("name", ["onnx", "tflite", "coreml"])
def test_what_it_makes_lowers(name: str, tmp_path: Path) -> None:
    model = net(depthwise=True)
    made = climb(model, samples(model), QuantizeOptions(), Goals(min_sqnr_db=25.0))
    assert any(a.rung == "equalisation through swish" and a.kept for a in made.attempts), made.attempts
    exporter, options = EXPORTERS.get(name), ExportOptions(Precision.INT8)
    assert not list(exporter.check(made.best.model, options))
    assert exporter.export(made.best.model, tmp_path / f"net.{name}", options).path.exists()
