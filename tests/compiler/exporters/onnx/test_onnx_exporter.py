"""The ONNX exporter, every file executed by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.errors import UnsupportedModel
from compiler.exporters.base import ExportOptions
from compiler.exporters.onnx.exporter import EXPORTER, OnnxExporter
from compiler.importers import import_model
from compiler.passes.serialize import from_bytes, to_bytes
from profiles.schema import Precision
from runtimes.errors import StorageError
from runtimes.registry import open_session

HEAD = '<ir_version: 10, opset_import: ["" : 21]> '
FLOAT = (
    HEAD
    + """
g (float[1, 4] x) => (float[1, 4] y, float[1, 4] z)
<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}, float[4] big = {1e5, 1e5, 1e5, 1e5},
 float low = {0.0}, float high = {3.4e38}>
{ a = MatMul(x, w)  b = Mul(a, big)  y = Div(b, big)  z = Clip(a, low, high) }
"""
)
QDQ = (
    HEAD
    + """
g (float[1, 4] x) => (float[1, 2] y)
<float sx = {0.05}, int8 zx = {-7}, float sy = {0.1}, int8 zy = {3}, int8[2, 4] w = {1, -2, 3, -4, 5, 6, -7, 8},
 float[2] sw = {0.01, 0.02}, int8[2] zw = {0, 0}>
{
    xq = QuantizeLinear(x, sx, zx)  xd = DequantizeLinear(xq, sx, zx)
    wd = DequantizeLinear<axis = 0>(w, sw, zw)
    a = Gemm<transB = 1>(xd, wd)
    yq = QuantizeLinear(a, sy, zy)  y = DequantizeLinear(yq, sy, zy)
}
"""
)


def _model(text: str) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def _run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with open_session(path) as session:
        return session.run(feeds)


def test_float32_is_the_hub_with_sorted_metadata_and_the_same_bytes(tmp_path: Path) -> None:
    model = _model(FLOAT)
    before = to_bytes(model)
    options = ExportOptions(Precision.FP32, metadata={"b": "2", "a": "1"})
    first, second = (EXPORTER.export(model, tmp_path / n, options).path for n in ("1.onnx", "2.onnx"))
    assert first.read_bytes() == second.read_bytes()
    assert [(p.key, p.value) for p in onnx.load(first).metadata_props] == [("a", "1"), ("b", "2")]
    assert to_bytes(model) == before


def test_float16_keeps_the_interface_and_reports_what_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    result = EXPORTER.export(_model(FLOAT), path, ExportOptions(Precision.FP16))
    kept = [note for note in result.notes if "stays float32" in note]
    assert [note.split()[0] for note in kept] == ["Mul", "Div"]
    assert all("65504" in note for note in kept)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert {t.name: t.data_type for t in proto.graph.initializer}["w_float16"] == onnx.TensorProto.FLOAT16
    x = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)
    want = x.astype(np.float64) @ np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 1, 2, 3], [4, 5, 6, 7]])
    got = _run(path, {"x": x})
    assert got["y"].dtype == got["z"].dtype == np.float32
    # One rounding of x, one of the result: 2 * 2^-11 of the largest term's magnitude.
    tolerance = 4 * 2.0**-11 * np.abs(x).sum() * 9
    np.testing.assert_allclose(got["y"], want, atol=tolerance)
    np.testing.assert_allclose(got["z"], np.maximum(want, 0), atol=tolerance)


@pytest.mark.parametrize("name", ["kws/model.onnx", "ad/model.onnx", "ultraface/slim_320.onnx"])
def test_float16_of_real_models_stays_close(realdata: Path, tmp_path: Path, name: str) -> None:
    imported = import_model(str(realdata / name))
    path = tmp_path / "m.onnx"
    EXPORTER.export(imported.model, path, ExportOptions(Precision.FP16))
    generator = np.random.default_rng(0)
    feeds = {
        s.name: generator.standard_normal([d or 1 for d in s.shape]).astype(np.float32)
        for s in imported.reference.inputs
    }
    want, got = imported.reference.run(feeds), _run(path, feeds)
    for key, expected in want.items():
        # float16 has 11 bits; some ten layers of random rounding leave about 7 of them.
        assert np.abs(got[key] - expected).max() <= 2.0**-7 * np.ptp(expected), key


def test_uint8_activations_are_the_same_numbers(tmp_path: Path) -> None:
    model, options = _model(QDQ), ExportOptions(Precision.INT8)
    EXPORTER.export(model, tmp_path / "int8.onnx", options)
    OnnxExporter("uint8").export(model, tmp_path / "uint8.onnx", options)
    types = {t.name: t.data_type for t in onnx.load(tmp_path / "uint8.onnx").graph.initializer}
    assert types["zx_uint8"] == types["zy_uint8"] == onnx.TensorProto.UINT8
    assert types["w"] == onnx.TensorProto.INT8
    assert "zx" not in types
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32) * 4}
    np.testing.assert_array_equal(_run(tmp_path / "int8.onnx", feeds)["y"], _run(tmp_path / "uint8.onnx", feeds)["y"])


def test_a_wrong_opset_and_a_broken_graph_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    options = ExportOptions(Precision.FP32)
    old = _model(FLOAT.replace('"" : 21', '"" : 17'))
    assert "opset 17" in EXPORTER.check(old, options)[0].reason
    broken = from_bytes(
        onnx.parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) { y = Conv(x) }").SerializeToString()
    )
    with pytest.raises(UnsupportedModel):
        EXPORTER.export(broken, tmp_path / "m.onnx", options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        EXPORTER.export(_model(FLOAT), tmp_path / "none" / "m.onnx", ExportOptions(Precision.FP32))
