from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.errors import UnsupportedModel
from compiler.exporters.base import ExportOptions
from compiler.exporters.onnx import EXPORTER
from compiler.passes.serialize import to_bytes
from profiles.schema import Precision
from runtimes.registry import open_session

HEADER = '<ir_version: 10, opset_import: ["": 21]>'
NET = """
g (float[1, 3, 8, 8] x) => (float[1, 3, 16, 16] y, int64[1, 16] best) {
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (c)
  y = Resize <mode = "nearest"> (r, , scales)
  m = ReduceMax <keepdims = 0> (y, axes)
  best = ArgMax <axis = 1, keepdims = 0> (m)
}
"""


def _model(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.fixture
def net() -> ir.Model:
    weight = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    return _model(NET, w=weight, scales=np.float32([1, 1, 2, 2]), axes=np.int64([3]))


def _run(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    with open_session(path) as session:
        return session.run({"x": x})


def test_float32_is_the_hub_itself(net: ir.Model, tmp_path: Path) -> None:
    before = to_bytes(net)
    EXPORTER.export(net, tmp_path / "a.onnx", ExportOptions(Precision.FP32, metadata={"author": "somebody"}))
    EXPORTER.export(net, tmp_path / "b.onnx", ExportOptions(Precision.FP32, metadata={"author": "somebody"}))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert to_bytes(net) == before
    assert {p.key: p.value for p in onnx.load(tmp_path / "a.onnx").metadata_props}["author"] == "somebody"


def test_float16_computes_in_half_and_speaks_float32(net: ir.Model, tmp_path: Path) -> None:
    EXPORTER.export(net, tmp_path / "full.onnx", ExportOptions(Precision.FP32))
    EXPORTER.export(net, tmp_path / "half.onnx", ExportOptions(Precision.FP16))
    proto = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(proto, full_check=True)
    kinds = {i.name: i.data_type for i in proto.graph.initializer}
    assert kinds["scales"] == onnx.TensorProto.FLOAT  # Resize fixes the type of its scales
    assert kinds["w.float16"] == onnx.TensorProto.FLOAT16
    assert "w" not in kinds
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    full, half = _run(tmp_path / "full.onnx", x), _run(tmp_path / "half.onnx", x)
    assert half["y"].dtype == np.float32
    # 27 products of values around 1, each rounded to 11 bits.
    np.testing.assert_allclose(half["y"], full["y"], atol=27 * 2**-11 * float(np.abs(full["y"]).max()) / 4)
    assert (half["y"] != full["y"]).any()


def test_a_constant_beyond_float16_keeps_its_node(tmp_path: Path) -> None:
    text = "g (float[1, 4] x) => (float[1, 4] y) { a = Mul (x, big)  b = Mul (a, small)  y = Relu (b) }"
    model = _model(text, big=np.float32([1e6]), small=np.float32([1e-6, 1e-9, 1, 1]))
    result = EXPORTER.export(model, tmp_path / "half.onnx", ExportOptions(Precision.FP16))
    assert any("1e+06" in note for note in result.notes)
    assert any("too small" in note for note in result.notes)
    outputs = _run(tmp_path / "half.onnx", np.float32([[0.01, 0.01, 0.01, 0.01]]))["y"]
    assert np.isfinite(outputs[0, 0])


def test_clip_may_be_open_ended(tmp_path: Path) -> None:
    text = "g (float[1, 2] x) => (float[1, 2] y) { y = Clip (x, low, high) }"
    model = _model(text, low=np.float32(0), high=np.float32(3.4e38))
    assert EXPORTER.export(model, tmp_path / "half.onnx", ExportOptions(Precision.FP16)).notes == ()
    np.testing.assert_array_equal(_run(tmp_path / "half.onnx", np.float32([[-1, 60000]]))["y"], [[0, 60000]])


def test_an_operator_without_float16_stays_float32(tmp_path: Path) -> None:
    """NonMaxSuppression is defined for float32 only: what feeds it is cast back."""
    text = "g (float[1, 4, 4] x) => (int64[n, 3] y) { b = Relu (x)  s = ReduceSum (x, axes)  t = Reshape (s, shape)"
    text += " y = NonMaxSuppression (b, t, most) }"
    model = _model(text, axes=np.int64([2]), shape=np.int64([1, 1, 4]), most=np.int64([2]))
    EXPORTER.export(model, tmp_path / "full.onnx", ExportOptions(Precision.FP32))
    EXPORTER.export(model, tmp_path / "half.onnx", ExportOptions(Precision.FP16))
    onnx.checker.check_model(onnx.load(tmp_path / "half.onnx"), full_check=True)
    boxes = np.float32([[[0, 0, 1, 1], [0, 0, 1, 0.875], [2, 2, 3, 3], [0.5, 0.5, 4, 4]]])
    expected = _run(tmp_path / "full.onnx", boxes)["y"]
    np.testing.assert_array_equal(_run(tmp_path / "half.onnx", boxes)["y"], expected)


def test_a_graph_input_that_is_an_output_survives(tmp_path: Path) -> None:
    model = _model("g (float[1, 2] x) => (float[1, 2] y, float[1, 2] z) { y = Relu (x)  z = Neg (y) }")
    EXPORTER.export(model, tmp_path / "half.onnx", ExportOptions(Precision.FP16))
    outputs = _run(tmp_path / "half.onnx", np.float32([[-1, 2]]))
    np.testing.assert_array_equal(outputs["y"], [[0, 2]])
    np.testing.assert_array_equal(outputs["z"], [[0, -2]])


def test_custom_domains_are_refused(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 21, "com.acme": 1]> g (float[1] x) => (float[1] y) { y = com.acme.Magic (x) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(UnsupportedModel, match=r"com\.acme\.Magic"):
        EXPORTER.export(model, tmp_path / "a.onnx", ExportOptions(Precision.FP32))
    assert not list(tmp_path.iterdir())
