"""The onnxruntime adapter against ONNX text models whose answers are known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest

from runtimes.errors import InferenceFailed, InputMismatch, ModelLoadError, RuntimeMissing
from runtimes.onnxruntime_session import OPENER, OnnxRuntimeSession, open_bytes
from runtimes.registry import open_session
from runtimes.session import Evidence, SessionOptions, TensorSpec, run_dataset

TWO_OUTPUTS = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 3] x, int64[3] k) => (float[N, 3] doubled, int64[3] k_out)
{
    doubled = Add(x, x)
    k_out = Neg(k)
}
"""


def _model(text: str = TWO_OUTPUTS) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


def test_specs_are_in_the_models_order_with_none_for_free_dimensions() -> None:
    with open_bytes(_model()) as session:
        assert session.inputs == (TensorSpec("x", "float32", (None, 3)), TensorSpec("k", "int64", (3,)))
        assert [spec.name for spec in session.outputs] == ["doubled", "k_out"]
        assert session.runtime.name == "onnxruntime"
        assert session.runtime.evidence is Evidence.EXECUTED


def test_runs_views_and_keeps_earlier_outputs_valid() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4).T[:, ::1]
    k = np.array([1, 2, 3])
    with open_bytes(_model()) as session:
        first = session.run({"x": x, "k": k})
        session.run({"x": np.zeros((4, 3), np.float32), "k": k})
    np.testing.assert_array_equal(first["doubled"], 2 * x)
    np.testing.assert_array_equal(first["k_out"], -k)


def test_opens_a_file_through_the_registry(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_model())
    with open_session(path) as session:
        outputs = run_dataset(session, {"x": np.ones((3, 3), np.float32), "k": np.array([1, 2, 3])})
    assert outputs["doubled"].shape == (3, 3)


@pytest.mark.parametrize(
    "feeds",
    [
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 3), np.float64), "k": np.zeros(3, np.int64)},
        {"x": np.zeros((1, 4), np.float32), "k": np.zeros(3, np.int64)},
    ],
)
def test_feeds_that_do_not_fit_are_refused(feeds: dict[str, np.ndarray]) -> None:
    with open_bytes(_model()) as session, pytest.raises(InputMismatch):
        session.run(feeds)


def test_a_failure_inside_the_runtime_is_typed() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[N] x, int64[2] shape) => (float[A, B] y) { y = Reshape(x, shape) }
    """
    with open_bytes(_model(text), name="reshaper") as session, pytest.raises(InferenceFailed, match="reshaper"):
        session.run({"x": np.zeros(5, np.float32), "shape": np.array([2, 2])})


@pytest.mark.parametrize("damage", [b"", b"not a model", _model()[:40]])
def test_a_damaged_file_is_a_load_error_with_a_remedy(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(damage)
    with pytest.raises(ModelLoadError) as caught:
        OPENER.open(path, SessionOptions())
    assert "m.onnx" in caught.value.message
    assert caught.value.remedy


def test_a_missing_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is not a file"):
        OPENER.open(tmp_path / "none.onnx", SessionOptions())


def test_an_unknown_provider_is_named_with_those_that_exist() -> None:
    with pytest.raises(RuntimeMissing, match="CPUExecutionProvider"):
        open_bytes(_model(), SessionOptions(provider="NoSuchProvider"))


def test_close_twice_then_run_is_an_error() -> None:
    session = open_bytes(_model())
    session.close()
    session.close()
    with pytest.raises(InferenceFailed, match="closed"):
        session.run({"x": np.zeros((1, 3), np.float32), "k": np.zeros(3, np.int64)})


def test_profiling_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    session = OnnxRuntimeSession(_model(), SessionOptions(profile=True), "profiled")
    session.run({"x": np.zeros((1, 3), np.float32), "k": np.zeros(3, np.int64)})
    events = json.loads(session.end_profiling())
    assert any(event.get("args", {}).get("op_name") == "Add" for event in events)
    with pytest.raises(ValueError, match="profile=True"):
        session.end_profiling()
    OnnxRuntimeSession(_model(), SessionOptions(profile=True), "closed early").close()
    assert not list(tmp_path.iterdir())


def test_available_says_why_when_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OPENER.available() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = OPENER.available()
    assert reason is not None
    assert "pip install" in reason


def test_int8_products_do_not_saturate_on_any_cpu() -> None:
    """On x86 without VNNI, onnxruntime's default kernels clip sums of two uint8 x int8 products to 16 bits."""
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (uint8[1, 64, 4, 4] x) => (uint8[1, 8, 4, 4] y)
    <float xs = {0.02}, uint8 xz = {128}, float ws = {0.01}, int8 wz = {0}, float ys = {2.0}>
    {
        y = QLinearConv (x, xs, xz, w, ws, wz, ys, xz)
    }
    """
    rng = np.random.default_rng(0)
    x = rng.integers(200, 256, (1, 64, 4, 4)).astype(np.uint8)
    w = rng.choice([-127, 127], (8, 64, 1, 1)).astype(np.int8)
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    sums = np.einsum("nchw,oc->nohw", x.astype(np.int64) - 128, w[:, :, 0, 0].astype(np.int64))
    with open_bytes(model.SerializeToString()) as session:
        y = session.run({"x": x})["y"]
    assert np.array_equal(y, np.clip(np.rint(sums * 0.02 * 0.01 / 2.0) + 128, 0, 255))


def test_several_batch_sizes_take_turns(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }'
    )
    onnx.save_model(model, tmp_path / "m.onnx")
    asked = []
    with open_session(tmp_path / "m.onnx") as session:
        run = session.run
        session.run = lambda feeds: asked.append(len(feeds["x"])) or run(feeds)  # type: ignore[method-assign]
        x = np.arange(20, dtype=np.float32).reshape(10, 2)
        assert np.array_equal(run_dataset(session, {"x": x}, (2, 1, 3))["y"], x)
    assert asked == [2, 1, 3, 2, 1, 1]
