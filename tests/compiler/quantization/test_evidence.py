"""Evidence: per-activation noise and saturation, islands with reasons, the CPU's flags."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.hub_session import open_hub
from compiler.quantization.engine import quantize
from compiler.quantization.evidence import Evidence, cpu_flags, gather_evidence
from compiler.quantization.plan import QuantizeOptions
from runtimes.session import TensorSpec, run_dataset
from tests.compiler.hub_models import hub

NET = """
g (float[1, 64] x) => (float[1, 64] y)
{
  a = Add(x, x)
  e = Exp(a)
  y = Mul(e, x)
}
"""


def data(samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Dataset:
    return make_dataset({"x": samples}, (TensorSpec("x", "float32", (1, 64)),), where="test")


def test_noise_saturation_and_islands_are_reported() -> None:
    rng = np.random.default_rng(0)
    calibration = data(rng.uniform(-1, 1, (32, 64)).astype(np.float32))
    model = hub(NET)
    result = quantize(model, calibration, QuantizeOptions(observer="min-max"))
    inside = gather_evidence(model, result, calibration)
    assert [layer.op_type for layer in inside.layers] == ["Add", "Exp", "Mul"]
    assert all(30 < layer.sqnr_db < 60 for layer in inside.layers)
    assert all(layer.saturated_share == 0 for layer in inside.layers)
    assert inside.worst is not None and inside.worst.sqnr_db == min(layer.sqnr_db for layer in inside.layers)
    assert list(inside.islands.values()) == ["no int8 rule for Exp"]
    outside = gather_evidence(model, result, data(rng.uniform(-2, 2, (32, 64)).astype(np.float32)))
    add = outside.layers[0]
    assert add.saturated_share == pytest.approx(0.5, abs=0.06)
    assert add.sqnr_db < inside.layers[0].sqnr_db - 10
    assert add in outside.saturated_above(0.01)
    assert inside.saturated_above(0.01) == ()


def test_each_activation_comes_with_its_range_and_histogram() -> None:
    rng = np.random.default_rng(0)
    calibration = data(rng.uniform(-1, 1, (32, 64)).astype(np.float32))
    model = hub(NET)
    result = quantize(model, calibration, QuantizeOptions(observer="min-max"))
    evidence = gather_evidence(model, result, calibration, samples=16)
    with open_hub(model, taps=[layer.value for layer in evidence.layers]) as session:
        plain = run_dataset(session, calibration.take(16).feeds)
    for layer in evidence.layers:
        params = result.spec.activations[layer.value]
        assert (layer.low, layer.high, layer.dtype) == (params.low, params.high, "int8")
        values = np.clip(plain[layer.value].astype(np.float64), layer.observed_low, layer.observed_high)
        counts, _ = np.histogram(values, 32, (layer.observed_low, layer.observed_high))
        assert layer.counts == tuple(counts) and sum(layer.counts) == 16 * 64


def test_missing_dot_products_are_said(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("flags : fpu avx2 avx_vnni\n")
    assert cpu_flags(info) == ("avx_vnni",)
    info.write_text("flags : fpu avx2\n")
    assert cpu_flags(info) == () == cpu_flags(tmp_path / "missing")
    assert "not the board's" in (Evidence((), {}, 1, ()).cpu_note or "")
    assert Evidence((), {}, 1, ("asimddp",)).cpu_note is None


def test_an_exact_activation_has_infinite_sqnr() -> None:
    model = hub("g (float[1, 64] x) => (float[1, 64] y) { y = Relu(x) }")
    steps = np.arange(32 * 64, dtype=np.float32).reshape(32, 64) % 256 - 128
    result = quantize(model, data(steps), QuantizeOptions(observer="min-max"))
    assert math.isinf(gather_evidence(model, result, data(np.full((1, 64), 0, np.float32))).layers[0].sqnr_db)
