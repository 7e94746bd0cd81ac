"""The rescue ladder on nets made hard on purpose, judged on samples that neither calibration nor the ladder saw."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.hub_session import open_hub
from compiler.passes import clean_up
from compiler.passes.serialize import to_bytes
from compiler.quantization.engine import quantize
from compiler.quantization.equalize import equalize
from compiler.quantization.ladder import MAX_FLOAT_SHARE, climb
from compiler.quantization.plan import QuantizeOptions
from runtimes.session import Array, run_dataset

NET = """
<ir_version: 10, opset_import: ["": 21]>
g (float[1, 3, 12, 12] x) => (float[1, 6] y) {
  [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  r = Relu (a)
  [deep] c = Conv <group = 16, pads = [1, 1, 1, 1]> (r, w1, b1)
  s = Relu (c)
  [point] d = Conv (s, w2, b2)
  t = Relu (d)
  p = GlobalAveragePool (t)
  f = Flatten (p)
  [head] y = Gemm <transB = 1> (f, w3, b3)
}
"""


def _net(spread: float) -> ir.Model:
    """``spread``: the depthwise channels' ranges differ by this factor, and the next weights take it back."""
    rng = np.random.default_rng(2)
    factors = np.geomspace(1, spread, 16)
    weights = {
        "w0": rng.standard_normal((16, 3, 3, 3)) * 0.3,
        "b0": rng.standard_normal(16) * 0.1,
        "w1": rng.standard_normal((16, 1, 3, 3)) * 0.3 * factors[:, None, None, None],
        "b1": rng.standard_normal(16) * 0.1 * factors,
        "w2": rng.standard_normal((24, 16, 1, 1)) * 0.3 / factors[None, :, None, None],
        "b2": rng.standard_normal(24) * 0.1,
        "w3": rng.standard_normal((6, 24)),
        "b3": rng.standard_normal(6),
    }
    proto = onnx.parser.parse_model(NET)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    return clean_up(ir.from_proto(proto))


def _samples(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).gamma(1.0, 1.0, (count, 3, 12, 12)).astype(np.float32)


def _dataset(model: ir.Model, samples: Array) -> Dataset:
    with open_hub(model) as session:
        return make_dataset({"x": samples}, session.inputs, where="test")


def _sqnr(model: ir.Model, coded: ir.Model, samples: Array) -> float:
    with open_hub(model) as plain, open_hub(coded) as quantized:
        want, found = (run_dataset(s, {"x": samples})["y"].astype(np.float64) for s in (plain, quantized))
    return float(10 * np.log10((want**2).sum() / ((want - found) ** 2).sum()))


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_the_ladder_never_loses_and_helps_where_it_is_hard(spread: float) -> None:
    model = _net(spread)
    before, data = to_bytes(model), _dataset(model, _samples(64, 0))
    climbed = climb(model, data, QuantizeOptions(observer="min-max"), quantize)
    assert to_bytes(model) == before
    unseen = _samples(128, 9)
    plain = _sqnr(model, quantize(model, data, QuantizeOptions(observer="min-max")).model, unseen)
    rescued = _sqnr(model, climbed.best.model, unseen)
    assert rescued >= plain - 0.3
    if spread > 1:
        assert rescued >= plain + 10, [(r.name, r.sqnr_db) for r in climbed.rungs]


def test_the_table_tells_what_was_tried_and_kept() -> None:
    model = _net(300.0)
    climbed = climb(model, _dataset(model, _samples(64, 0)), QuantizeOptions(), quantize)
    assert climbed.held_out == 16
    kept = [rung.sqnr_db for rung in climbed.rungs if rung.kept]
    assert climbed.rungs[0].kept and kept == sorted(kept)
    assert all(rung.float_share <= MAX_FLOAT_SHARE for rung in climbed.rungs if rung.kept)
    assert {"as asked", "bias correction"} <= {rung.name for rung in climbed.rungs}
    assert not [r for r in climbed.rungs if r.name == "float nodes" and r.kept and not r.note]


def test_equalization_keeps_the_function_and_evens_the_ranges() -> None:
    model = _net(300.0)
    before = to_bytes(model)
    evened, pairs = equalize(model)
    assert pairs == 2 and to_bytes(model) == before
    x = _samples(8, 1)
    with open_hub(model) as plain, open_hub(evened) as other:
        want, found = (run_dataset(s, {"x": x})["y"] for s in (plain, other))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)

    def spread(hub: ir.Model) -> float:
        deep = next(node for node in hub.graph if node.name == "deep")
        weight = deep.inputs[1].const_value.numpy()  # type: ignore[union-attr]
        tops = np.abs(weight).reshape(16, -1).max(axis=1)
        return float(tops.max() / tops.min())

    assert spread(evened) < spread(model) / 10


def test_few_samples_serve_both_purposes() -> None:
    model = _net(1.0)
    assert climb(model, _dataset(model, _samples(4, 0)), QuantizeOptions(), quantize).held_out == 4
