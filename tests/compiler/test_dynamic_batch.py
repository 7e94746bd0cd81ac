"""Artifacts that take every batch size: executed at several, against onnxruntime on the source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

from compiler.cli.main import cli
from compiler.errors import DataError, SourceError, UnsupportedModel
from compiler.pipeline import build
from compiler.request import BuildRequest
from profiles.schema import Format, Precision
from runtimes.registry import open_session

pytest.importorskip("ai_edge_litert")

# A flattening and a product between two layers: their shapes hold the batch.
NET = """
<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3, 8, 8] x) => (float[N, 5] y)
  <int64[2] flat = {0, 64}> {
  [conv] c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
  [act] a = Relu (c)
  [flat] f = Reshape (a, flat)
  [product] p = MatMul (f, m)
  [out] y = Softmax <axis = -1> (p)
}
"""


WEIGHTS = {"w": (4, 3, 3, 3), "m": (64, 5)}


def _source(tmp_path: Path, text: str = NET, weights: dict[str, tuple[int, ...]] | None = None) -> Path:
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (weights or WEIGHTS).items():
        content = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    path = tmp_path / "net.onnx"
    onnx.save_model(model, path)
    return path


def _build(source: Path, tmp_path: Path, **options: object) -> Path:
    request = BuildRequest(str(source), tmp_path / "out", dynamic_batch=True, **options)  # type: ignore[arg-type]
    assert build(request).ok
    return tmp_path / "out"


@pytest.mark.parametrize("fmt", [Format.TFLITE, Format.ONNX])
def test_float_artifacts_run_at_every_batch_size(tmp_path: Path, fmt: Format) -> None:
    source = _source(tmp_path)
    out = _build(source, tmp_path, formats=(fmt,), precisions=(Precision.FP32,))
    artifact = next(p for p in out.iterdir() if p.stem == "net-fp32")
    with open_session(source) as truth, open_session(artifact) as session:
        assert session.inputs[0].shape[0] is None and session.outputs[0].shape[0] is None
        for batch in (1, 4, 11, 3):
            x = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
            np.testing.assert_allclose(session.run({"x": x})["y"], truth.run({"x": x})["y"], atol=2e-6)
    assert "at batch sizes 1, 2, 3" in (out / "report.json").read_text("utf-8")


def test_int8_artifacts_run_at_every_batch_size(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    options = {"formats": (Format.ONNX, Format.TFLITE), "precisions": (Precision.INT8,)}
    out = _build(_source(tmp_path), tmp_path, calibration=str(tmp_path / "data.npz"), **options)
    with open_session(out / "net-int8.onnx") as first, open_session(out / "net-int8.tflite") as second:
        for batch in (1, 5, 32):
            answers = [session.run({"x": x[:batch]})["y"] for session in (first, second)]
            np.testing.assert_allclose(answers[0], answers[1], atol=2 / 256)


def test_a_fixed_batch_size_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path, NET.replace("N, 3", "1, 3").replace("N, 5", "1, 5"))
    with pytest.raises(SourceError, match="fixed batch size"):
        _build(source, tmp_path, formats=(Format.TFLITE,), precisions=(Precision.FP32,))


def test_what_has_no_form_for_every_size_is_named(tmp_path: Path) -> None:
    """A transposed convolution of TFLite states its output's shape."""
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[N, 3, 8, 8] x) => (float[N, 2, 16, 16] y) {
      [up] y = ConvTranspose <strides = [2, 2]> (x, w)
    }
    """
    with pytest.raises(UnsupportedModel, match="batch size") as caught:
        _build(
            _source(tmp_path, text, {"w": (3, 2, 2, 2)}),
            tmp_path,
            formats=(Format.TFLITE,),
            precisions=(Precision.FP32,),
        )
    assert [(r.node, r.op_type) for r in caught.value.refusals] == [("up", "TRANSPOSE_CONV")]


def test_the_command_line_takes_a_size_or_dynamic(tmp_path: Path) -> None:
    source = _source(tmp_path)
    bad = CliRunner().invoke(cli, ["build", str(source), "-o", str(tmp_path / "a"), "--batch", "0"])
    assert bad.exit_code == 2 and "neither a size" in bad.output
    command = [
        "build",
        str(source),
        "-o",
        str(tmp_path / "b"),
        "--batch",
        "dynamic",
        "--format",
        "coreml",
        "--precision",
        "fp32",
    ]
    refused = CliRunner().invoke(cli, command).exception
    assert isinstance(refused, DataError) and "one batch size" in str(refused)
