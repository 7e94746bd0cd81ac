from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.draft import DRAFT_NAME, VECTORS_NAME, drift_baseline, write_draft, write_npz
from compiler.report.schema import ArtifactReport
from compiler.verification.metrics import Parity
from compiler.verification.verify import Truth
from runtimes.artifact.files import sha256_file
from runtimes.artifact.manifest import Histogram, read_manifest
from runtimes.session import TensorSpec


@pytest.fixture
def truth() -> Truth:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((200, 4)).astype(np.float32)
    return Truth({"x": rng.random((200, 2, 3)).astype(np.float32)}, {"y": logits}, None)


def _write(folder: Path, truth: Truth) -> bytes:
    folder.mkdir(exist_ok=True)
    parity = Parity(0.02, 0.01, 40.0, 0.99, "y", True, 200)
    artifact = ArtifactReport(
        "net-int8.tflite",
        "tflite",
        "int8",
        ("board",),
        "litert",
        "2",
        "executed",
        3,
        "0" * 64,
        parity,
        parity,
        None,
        None,
        1.0,
        1,
    )
    interface = ((TensorSpec("x", "float32", (1, 2, 3)),), (TensorSpec("y", "float32", (1, 4)),))
    write_draft(
        folder, "net", interface, {"y": "logits"}, {}, {}, ("a", "b", "c", "d"), (artifact,), truth, {"source": "s"}, {}
    )
    return (folder / DRAFT_NAME).read_bytes()


def test_the_draft_is_a_valid_manifest_with_vectors(tmp_path: Path, truth: Truth) -> None:
    manifest = read_manifest(_write(tmp_path, truth))
    assert manifest.outputs[0].labels == ("a", "b", "c", "d")
    assert manifest.self_test.max_abs_error == pytest.approx(0.04)
    assert manifest.self_test.vectors.sha256 == sha256_file(tmp_path / VECTORS_NAME)
    vectors = np.load(tmp_path / VECTORS_NAME)
    assert sorted(vectors.files) == ["in/x", "out/y"]
    picked = [int(np.flatnonzero((truth.feeds["x"] == v).all((1, 2)))[0]) for v in vectors["in/x"]]
    assert len(picked) == 16
    np.testing.assert_array_equal(vectors["out/y"], truth.outputs["y"][picked])


def test_the_same_figures_give_the_same_bytes(tmp_path: Path, truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _write(tmp_path / "a", truth)
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert _write(tmp_path / "b", truth) == first
    assert (tmp_path / "a" / VECTORS_NAME).read_bytes() == (tmp_path / "b" / VECTORS_NAME).read_bytes()


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 80), st.just(3)), elements=st.floats(-1e3, 1e3, width=32)))
def test_every_sample_falls_in_one_bin(values: np.ndarray) -> None:
    truth = Truth({"x": values}, {"y": values}, None)
    baseline = drift_baseline(truth, {"y": "logits"})
    for document in (baseline["inputs"]["x"], baseline["confidence"]):
        histogram = Histogram.model_validate(document)
        assert sum(histogram.counts) == len(values)
    assert sum(baseline["classes"]) == len(values)


def test_npz_round_trip(tmp_path: Path) -> None:
    arrays = {"b/x": np.arange(6, dtype=np.int16).reshape(2, 3), "a": np.float32([1.5])}
    write_npz(tmp_path / "x.npz", arrays)
    read = np.load(tmp_path / "x.npz")
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
