"""Sources above the hub's opset, and loops with a known number of steps: imported, and equal to onnxruntime on the source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from compiler.errors import UnsupportedModel
from compiler.hub import HUB_OPSET
from compiler.hub_session import open_hub
from compiler.importers import import_model
from compiler.importers.base import ImportOptions

ATTENTION = """
<ir_version: 11, opset_import: ["": 23]>
g (float[1, 4, 6, 8] q, float[1, 2, 9, 8] k, float[1, 2, 9, 8] v) => (float[1, 4, 6, 8] y) {
  a = Attention <is_causal = 1, softcap = 2.0> (q, k, v)
  b = RMSNormalization (a, s)
  y = Swish (b)
}
""".replace('"": 23', '"": 24')
SCAN = """
<ir_version: 10, opset_import: ["": 21]>
g (float[2] start, float[5, 2] x) => (float[2] last, float[5, 2] sums) {
  last, sums = Scan <num_scan_inputs = 1, scan_input_directions = [1],
    body = step (float[2] s, float[2] e) => (float[2] n, float[2] o) {
    n = Add (s, e)
    o = Mul (n, e)
  }> (start, x)
}
"""
LOOP = """
<ir_version: 10, opset_import: ["": 21]>
g (float[3] x) => (float[3] y, float[4, 3] all) <int64 count = {4}> {
  y, all = Loop <body = step (int64 i, bool go, float[3] s) => (bool still, float[3] n, float[3] o) {
    still = Identity (go)
    f = Cast <to = 1> (i)
    n = Add (s, f)
    o = Identity (n)
  }> (count, , x)
}
"""


def _check(text: str, tmp_path: Path, **weights: np.ndarray) -> set[str]:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(proto, tmp_path / "m.onnx")
    imported = import_model(str(tmp_path / "m.onnx"), ImportOptions())
    assert imported.model.opset_imports[""] == HUB_OPSET
    rng = np.random.default_rng(0)
    with open_hub(imported.model) as hub:
        feeds = {s.name: rng.standard_normal([d or 1 for d in s.shape]).astype(np.float32) for s in hub.inputs}
        expected, actual = imported.reference.run(feeds), hub.run(feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-6)
    return {node.op_type for node in imported.model.graph}


def test_operators_newer_than_the_hub(tmp_path: Path) -> None:
    try:
        operators = _check(ATTENTION, tmp_path, s=np.linspace(0.5, 1.5, 8).astype(np.float32))
    except Exception as error:  # the source itself needs a runtime that knows the opset
        if "SourceError" in type(error).__name__ and "onnxruntime" in str(error):
            pytest.skip(f"this onnxruntime does not run the source: {error}")
        raise
    assert not {"Attention", "RMSNormalization", "Swish"} & operators


@pytest.mark.parametrize("text", [SCAN, LOOP])
def test_loops_are_written_out(text: str, tmp_path: Path) -> None:
    assert not {"Scan", "Loop"} & _check(text, tmp_path)


def test_what_has_no_older_form_is_refused_by_name(tmp_path: Path) -> None:
    text = '<ir_version: 11, opset_import: ["": 26]> g (float[2] x) => (int32[2] y) { [cast] y = BitCast <to = 6> (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModel) as caught:
        import_model(str(tmp_path / "m.onnx"), ImportOptions())
    assert [(r.node, r.op_type) for r in caught.value.refusals] == [("cast", "BitCast")]
