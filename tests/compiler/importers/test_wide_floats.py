"""Sources in other float types, branches chosen at run time, results shaped by constants: into the hub and out of LiteRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray

from compiler.errors import UnsupportedModel
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from profiles.schema import Precision
from runtimes.onnxruntime_session import open_bytes
from runtimes.registry import open_session

pytest.importorskip("ai_edge_litert")
Feeds = dict[str, NDArray[np.generic]]


def _both(tmp_path: Path, text: str, feeds: Feeds) -> tuple[Feeds, Feeds]:
    """What onnxruntime gives on the source, and LiteRT on our file."""
    model = onnx.parser.parse_model(text)
    truth = open_bytes(model.SerializeToString()).run(feeds)
    path = tmp_path / "model.tflite"
    EXPORTERS.get("tflite").export(to_hub(model, ImportOptions()), path, ExportOptions(Precision.FP32))
    with open_session(path) as session:
        assert [spec.dtype for spec in session.inputs] == [feeds[spec.name].dtype.name for spec in session.inputs]
        return truth, session.run(feeds)


@pytest.mark.parametrize(
    ("text_type", "dtype", "tolerance"), [("float16", "float16", 2**-9), ("double", "float64", 1e-6)]
)
def test_ports_keep_their_type_and_float32_computes(
    tmp_path: Path, text_type: str, dtype: str, tolerance: float
) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["": 21]>
    g ({text_type}[2, 3] x) => ({text_type}[2, 3] y) {{
      a = Mul (x, x)
      b = Cast <to = 1> (a)
      c = CastLike (b, x)
      y = Tanh (c)
    }}
    """
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(dtype)
    truth, found = _both(tmp_path, text, {"x": x})
    assert found["y"].dtype == dtype
    np.testing.assert_allclose(found["y"], truth["y"], atol=tolerance)


def test_the_lowest_double_stays_finite_as_a_mask(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (double[4] x) => (double[4] y) <double low = {-1.7976931348623157e308}, double[4] hide = {0, 1, 0, 1}> {
      m = Mul (hide, low)
      s = Add (x, m)
      y = Softmax <axis = 0> (s)
    }
    """
    truth, found = _both(tmp_path, text, {"x": np.asarray([1.0, 2, 3, 4])})
    np.testing.assert_allclose(found["y"], truth["y"], atol=1e-6)


def test_bits_of_another_float_are_refused() -> None:
    node = onnx.helper.make_node("BitCast", ["x"], ["y"], to=onnx.TensorProto.INT64)
    ports = [
        onnx.helper.make_tensor_value_info(name, elem_type, [2])
        for name, elem_type in (("x", onnx.TensorProto.DOUBLE), ("y", onnx.TensorProto.INT64))
    ]
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 26)])
    with pytest.raises(UnsupportedModel, match="bits of a float"):
        to_hub(model, ImportOptions())


BRANCHES = """
<ir_version: 10, opset_import: ["": 21]>
g (bool c, float[3] x) => (float[3] y) {
  y = If (c) <
    then_branch = t () => (float[3] a) <float[1] two = {2}> { a = Mul (x, two) },
    else_branch = e () => (float[ELSE] b) { b = Neg (x) }
  >
}
"""


@pytest.mark.parametrize("condition", [True, False])
def test_a_branch_is_chosen_at_run_time(tmp_path: Path, condition: bool) -> None:
    feeds: Feeds = {"c": np.asarray(condition), "x": np.asarray([1, -2, 3], np.float32)}
    truth, found = _both(tmp_path, BRANCHES.replace("ELSE", "3"), feeds)
    np.testing.assert_array_equal(found["y"], truth["y"])


def test_branches_of_different_shapes_are_refused() -> None:
    text = BRANCHES.replace("float[3] y", "float[k] y").replace("ELSE", "1").replace("b = Neg (x)", "b = ReduceSum (x)")
    with pytest.raises(UnsupportedModel, match="If"):
        to_hub(onnx.parser.parse_model(text), ImportOptions())


def test_a_trip_count_that_folds_unrolls_the_loop(tmp_path: Path) -> None:
    """The count is the shape's, which is known once the clean-up has run."""
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[3, 2] x) => (float[2] y) <int64[1] zero = {0}, bool keep = {1}, float[2] start = {1, 1}> {
      s = Shape (x)
      n1 = Gather (s, zero)
      n = Squeeze (n1)
      y = Loop (n, keep, start) <
        body = b (int64 i, bool go, float[2] state) => (bool go_on, float[2] next) {
          go_on = Identity (go)
          row = Gather <axis = 0> (x, i)
          next = Mul (state, row)
        }
      >
    }
    """
    truth, found = _both(tmp_path, text, {"x": np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)})
    np.testing.assert_allclose(found["y"], truth["y"], rtol=1e-6)


def test_a_constant_condition_selects_by_place(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[2, 3] x) => (float[2, 2] y, float[k] z) <bool[3] some = {1, 0, 1}> {
      y = Compress <axis = 1> (x, some)
      z = Compress (x, some)
    }
    """
    truth, found = _both(tmp_path, text, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    np.testing.assert_array_equal(found["y"], truth["y"])
    np.testing.assert_array_equal(found["z"], truth["z"])
