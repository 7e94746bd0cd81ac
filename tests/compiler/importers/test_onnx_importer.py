"""The ONNX importer on real models against onnxruntime on the original file, and on files that mean harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.external_data_helper import set_external_data

from compiler.errors import SourceError, UnsupportedModel
from compiler.hub import HUB_OPSET
from compiler.importers import import_model
from compiler.importers.base import ImportOptions
from compiler.passes.serialize import to_bytes
from runtimes.onnxruntime_session import open_bytes

REAL = [
    "kws/model.onnx",
    "ic/model.onnx",
    "vww/model.onnx",
    "ad/model.onnx",
    "ultraface/slim_320.onnx",
    "dtln/model_1.onnx",
    "dtln/model_2.onnx",
    "magika/model.onnx",
    "basic_pitch/nmp.onnx",
]
SMALL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, w) }
"""


def _write(folder: Path, text: str = SMALL) -> Path:
    path = folder / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.mark.parametrize("name", REAL)
def test_real_models_keep_their_numbers(realdata: Path, name: str) -> None:
    imported = import_model(str(realdata / name))
    generator = np.random.default_rng(0)
    with open_bytes(to_bytes(imported.model)) as hub, imported.reference as reference:
        assert [s.name for s in hub.inputs] == [s.name for s in reference.inputs]
        feeds = {
            s.name: generator.standard_normal(s.shape).astype(np.float32)
            if s.dtype == "float32"
            else generator.integers(0, 256, s.shape).astype(s.dtype)
            for s in hub.inputs
        }
        want, have = reference.run(feeds), hub.run(feeds)
    assert list(want) == list(have)
    for key, expected in want.items():
        assert np.abs(have[key] - expected).max() <= 1e-5 * np.ptp(expected), key
    assert imported.model.opset_imports == {"": HUB_OPSET}
    for node in imported.model.graph:
        assert node.op_type not in {"Identity", "Constant", "BatchNormalization", "Flatten", "Squeeze", "Unsqueeze"}
        assert all(isinstance(d, int) for v in node.outputs if v.name for d in v.shape or ["?"])


def test_the_batch_is_the_one_asked_for(tmp_path: Path) -> None:
    imported = import_model(str(_write(tmp_path)), ImportOptions(batch=3))
    assert [tuple(v.shape or ()) for v in (*imported.model.graph.inputs, *imported.model.graph.outputs)] == [
        (3, 4),
        (3, 2),
    ]
    assert imported.reference.inputs[0].shape == (None, 4)
    assert imported.source.kind == "onnx"
    assert len(imported.source.sha256) == 64


def test_other_free_dimensions_are_listed_and_can_be_given(tmp_path: Path) -> None:
    text = (
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, H, W] x) => (float[1, 3, H, W] y) { y = Relu(x) }"""
    )
    path = str(_write(tmp_path, text))
    with pytest.raises(SourceError, match=r"x\[1x3xHxW\]"):
        import_model(path)
    imported = import_model(path, ImportOptions(input_shapes={"x": (1, 3, 8, 6)}))
    assert tuple(imported.model.graph.outputs[0].shape or ()) == (1, 3, 8, 6)


@pytest.mark.parametrize("shapes", [{"z": (1,)}, {"x": (1, 5)}, {"x": (1, 4, 1)}])
def test_given_shapes_that_contradict_the_model_are_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(SourceError):
        import_model(str(_write(tmp_path)), ImportOptions(input_shapes=shapes))


def test_damaged_missing_and_unknown_sources(tmp_path: Path) -> None:
    path = _write(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="valid ONNX"):
        import_model(str(path))
    with pytest.raises(SourceError, match="not a file"):
        import_model(str(tmp_path / "none.onnx"))
    with pytest.raises(SourceError) as caught:
        import_model("model.xyz")
    assert "SavedModel" in caught.value.remedy


def _external(folder: Path, location: str) -> Path:
    model = onnx.parser.parse_model(SMALL)
    tensor = model.graph.initializer[0]
    data = np.arange(1, 9, dtype=np.float32).tobytes()
    tensor.ClearField("float_data")
    tensor.raw_data = data
    set_external_data(tensor, location, length=len(data))
    tensor.ClearField("raw_data")
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(1, 9, dtype=np.float32).tobytes())
    imported = import_model(str(_external(tmp_path, "w.bin")))
    with open_bytes(to_bytes(imported.model)) as hub:
        np.testing.assert_array_equal(hub.run({"x": np.ones((1, 4), np.float32)})["y"], [[16.0, 20.0]])


@pytest.mark.parametrize("kind", ["absolute", "parent", "link"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.arange(8, dtype=np.float32).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(secret)
    location = {"absolute": str(secret), "parent": "../secret.bin", "link": "link.bin"}[kind]
    with pytest.raises(SourceError, match="outside"):
        import_model(str(_external(folder, location)))


def test_foreign_operators_are_all_listed(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "com.example" : 1, "com.microsoft" : 1]>
    g (float[1, 4] x) => (float[1, 4] y)
    <float s = {0.1}, int8 z = {0}>
    { a = com.example.Magic(x)  b = com.microsoft.QuickGelu(a)  q = QuantizeLinear(b, s, z)  y = DequantizeLinear(q, s, z) }
    """
    with pytest.raises(UnsupportedModel) as caught:
        import_model(str(_write(tmp_path, text)))
    assert [r.op_type for r in caught.value.refusals] == ["Magic", "QuickGelu"]


def test_data_dependent_shapes_are_refused(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4] x) => (int64[2, K] y)
    { z = NonZero(x)  y = Neg(z) }"""
    with pytest.raises(UnsupportedModel, match="depends on data"):
        import_model(str(_write(tmp_path, text)))
