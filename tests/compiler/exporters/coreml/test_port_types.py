"""Inputs and outputs in every type that a source may have, at targets with and without it, against onnxruntime or NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from compiler.pipeline import build
from compiler.request import BuildRequest
from profiles.schema import Format
from runtimes.errors import InputMismatch
from runtimes.registry import open_session
from tests.compiler.exporters.coreml.support import export, parse
from tests.compiler.exporters.coreml.test_exporter import specification

TYPES = {"float16": "FLOAT16", "float64": "FLOAT32", "bfloat16": "FLOAT32"}  # what the package carries since iOS16
ONNX_NAMES = {"float64": "double"}


def _net(kind: str) -> onnx.ModelProto:
    name = ONNX_NAMES.get(kind, kind)
    return parse(f"g ({name}[2, 3] x) => ({name}[2, 3] y) {{ s = Sin(x)  y = Add(s, x) }}")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS18"])
def test_other_floats(tmp_path: Path, kind: str, target: str) -> None:
    """float32 all the way inside: what is given back is the exact result, rounded once to the type of the port."""
    path, result = export(to_hub(_net(kind), ImportOptions()), tmp_path, target=target)
    carried = TYPES[kind] if target != "iOS15" else "FLOAT32"
    description = specification(path).description
    for feature in (*description.input, *description.output):
        array = feature.type.multiArrayType
        assert array.ArrayDataType.Name(array.dataType) == carried
    assert json.loads(description.metadata.userDefined["edgewright.dtypes"]) == {"x": kind, "y": kind}
    assert any("in the source and float32" in note for note in result.notes) == (carried == "FLOAT32")
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(dtype)
    with open_session(path, runtime="coreml-reference") as session:
        assert session.inputs[0].dtype == carried.lower()
        got = session.run({"x": x})["y"]
    exact = np.sin(x.astype(np.float64)) + x.astype(np.float64)
    unit = 2.0**-11 if kind == "float16" else 2.0**-22  # the source itself rounds to float16 before its output
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=unit, atol=unit)


def test_a_double_beyond_the_port_is_refused(tmp_path: Path) -> None:
    path, _ = export(to_hub(_net("float64"), ImportOptions()), tmp_path)
    with (
        open_session(path, runtime="coreml-reference") as session,
        pytest.raises(InputMismatch, match="carries float32"),
    ):
        session.run({"x": np.full((2, 3), 1e300)})


BYTES = """g (KIND[2, 3] x, KIND[3] w) => (float[2, 3] y, KIND[2, 3] z, bool[2, 3] g) {
  f = Cast<to = 1>(x)
  y = Mul(f, half)
  c = Concat<axis = 0>(x, x)
  t = Slice(c, one, three)
  r = Cast<to = 1>(t)
  q = Add(r, three_hundred)
  q32 = Cast<to = 6>(q)
  z = Cast<to = TO>(q32)
  g = Greater(x, w)
}"""


@pytest.mark.parametrize(("kind", "to"), [("uint8", 2), ("int8", 3)])
@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17"])
def test_bytes(tmp_path: Path, kind: str, to: int, target: str) -> None:
    text = BYTES.replace("KIND", kind).replace("TO", str(to))
    proto = parse(text, half=np.float32(0.5), one=np.int64([1]), three=np.int64([3]), three_hundred=np.float32(300))
    model = to_hub(proto, ImportOptions())
    info = np.iinfo(kind)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.integers(info.min, info.max + 1, (2, 3)).astype(kind), "w": np.array([1, 2, 3], kind)}
    path, _ = export(model, tmp_path, target=target)
    with open_session(path, runtime="coreml-reference") as session:
        got = session.run(feeds)
    x = feeds["x"].astype(np.int64)
    np.testing.assert_array_equal(got["y"], x * 0.5)
    np.testing.assert_array_equal(got["z"], (x[[1, 0]] + 300).astype(kind))
    np.testing.assert_array_equal(got["g"], x > feeds["w"])


def test_a_half_precision_source_is_built_and_verified(tmp_path: Path) -> None:
    onnx.save(_net("float16"), tmp_path / "half.onnx")
    report = build(BuildRequest(str(tmp_path / "half.onnx"), tmp_path / "out", formats=(Format.COREML,)))
    assert report.ok, [g for g in report.gates if not g.ok]
