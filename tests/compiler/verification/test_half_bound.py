"""What float16 may lose is measured on the package: it explains honest roundings and no mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.gates import LOWERING_TOLERANCE, half_gate, half_limit
from compiler.verification.half_bound import HalfBound, half_bound
from profiles.schema import Precision
from runtimes.coreml_reference.registry import EVALUATIONS, Call
from runtimes.coreml_reference.session import open_package
from runtimes.coreml_reference.shaking import UNIT, Shake
from runtimes.session import Array
from tests.compiler.exporters.coreml.support import Arrays, export, hub, parse, reference

SAMPLES = 16


def chain(depth: int) -> ir.Model:
    """Products of well-conditioned matrices with a bend between them."""
    rng = np.random.default_rng(5)
    weights = {f"w{i}": (np.linalg.qr(rng.standard_normal((24, 24)))[0] * 1.4).astype(np.float32) for i in range(depth)}
    steps = " ".join(f"a{i} = MatMul(t{i}, w{i}) t{i + 1} = Tanh(a{i})" for i in range(depth))
    return hub(
        parse(f"c (float[1,24] x) => (float[1,24] y) {{ t0 = Identity(x) {steps} y = Identity(t{depth}) }}", **weights)
    )


def measured(model: ir.Model, folder: Path) -> tuple[Path, Arrays, Arrays, Arrays]:
    """The float16 package, feeds, its answers and the hub's."""
    path, _ = export(model, folder, "fp16")
    feeds = {"x": np.random.default_rng(6).standard_normal((SAMPLES, 24)).astype(np.float32)}
    rows = [{"x": feeds["x"][i : i + 1]} for i in range(SAMPLES)]
    with open_package(path) as session:
        got = {"y": np.concatenate([session.run(row)["y"] for row in rows])}
    return path, feeds, got, {"y": np.concatenate([reference(model, row)["y"] for row in rows])}


@pytest.mark.parametrize("depth", (1, 4, 12))
def test_honest_roundings_are_within_it_and_not_by_far(tmp_path: Path, depth: int) -> None:
    found = half_bound(*measured(chain(depth), tmp_path))
    assert found.bound / 20 < found.error < found.bound


def test_deeper_nets_may_lose_more(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    shallow = half_bound(*measured(chain(2), tmp_path))
    deep = half_bound(*measured(chain(12), tmp_path / "deep"))
    assert shallow.bound < deep.bound < LOWERING_TOLERANCE[Precision.FP16] * 10


def test_one_operation_may_lose_its_own_rounding_alone(tmp_path: Path) -> None:
    """A product by a constant: the input, the constant and the product are rounded; t is that of 24 outputs on 16 samples."""
    factors = np.linspace(0.5, 1.5, 24, dtype=np.float32)
    model = hub(parse("m (float[1,24] x) => (float[1,24] y) { y = Mul(x, f) }", f=factors))
    path, feeds, got, want = measured(model, tmp_path)
    found = half_bound(path, feeds, got, want)
    times = np.sqrt(2 * np.log(2 * 24 * SAMPLES / 1e-3))
    largest = np.abs(want["y"]).max() / np.ptp(want["y"])
    assert found.error < found.bound <= times * 3 * UNIT * largest


def test_a_wrong_operation_is_not_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, feeds, _, want = measured(chain(1), tmp_path)
    right = EVALUATIONS.get("tanh")

    def wrong(call: Call) -> Array:
        result = right(call)
        assert isinstance(result, np.ndarray)
        return np.asarray(result * np.float32(1.01))  # within the fixed 1e-2

    monkeypatch.setitem(EVALUATIONS._entries, "tanh", wrong)
    with open_package(path) as session:
        got = {"y": np.concatenate([session.run({"x": feeds["x"][i : i + 1]})["y"] for i in range(SAMPLES)])}
    found = half_bound(path, feeds, got, want)
    assert found.error < LOWERING_TOLERANCE[Precision.FP16]
    assert not half_gate("m", found).ok


def test_float32_operations_are_not_shaken(tmp_path: Path) -> None:
    path, _ = export(chain(3), tmp_path, "fp32")
    feeds = {"x": np.ones((1, 24), np.float32)}
    answers = []
    for shake in (None, Shake(1)):
        with open_package(path, shake) as session:
            answers.append(session.run(feeds)["y"])
    np.testing.assert_array_equal(*answers)


def test_shaking_depends_on_the_seed_alone(tmp_path: Path) -> None:
    path, _ = export(chain(2), tmp_path, "fp16")
    feeds = {"x": np.ones((1, 24), np.float32)}
    answers = []
    for seed in (1, 1, 2):
        with open_package(path, Shake(seed)) as session:
            answers.append(session.run(feeds)["y"])
    np.testing.assert_array_equal(answers[0], answers[1])
    assert np.any(answers[0] != answers[2])


def test_the_gate_says_both_numbers_and_never_allows_more_than_before() -> None:
    gate = half_gate("m.mlpackage", HalfBound("y", 2e-3, 1e-3))
    assert not gate.ok and (gate.value, gate.limit) == (2e-3, 1e-3)
    assert "0.002" in gate.reason and "add up to 0.001" in gate.reason
    assert half_limit(HalfBound("y", 0.0, float("inf"))) == LOWERING_TOLERANCE[Precision.FP16]
    assert not half_gate("m.mlpackage", HalfBound("y", 0.02, 0.5)).ok
