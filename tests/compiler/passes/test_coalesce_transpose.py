"""Window partitions of rank six become rank four; the numbers stay, and a near miss is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.passes import clean_up
from compiler.passes.serialize import to_bytes
from runtimes.onnxruntime_session import open_bytes

WINDOWS = """
<ir_version: 10, opset_import: ["": 21]>
g (float[1, 8, 8, 3] x) => (float[4, 16, 3] y)
  <int64[6] wide = {1, 2, 4, 2, 4, 3}, int64[3] flat = {4, 16, 3}> {
  w = Reshape (x, wide)
  t = Transpose <perm = [0, 1, 3, 2, 4, 5]> (w)
  y = Reshape (t, flat)
}
"""
SHUFFLED = WINDOWS.replace("[0, 1, 3, 2, 4, 5]", "[5, 3, 1, 4, 2, 0]").replace("{4, 16, 3}", "{4, 16, 3}")


@pytest.mark.parametrize(("text", "rank"), [(WINDOWS, 4), (SHUFFLED, 6)])
def test_axes_that_stay_neighbours_become_one(text: str, rank: int) -> None:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    cleaned = clean_up(model)
    turned = [node for node in cleaned.graph if node.op_type == "Transpose"]
    assert [len(node.outputs[0].shape or ()) for node in turned] == [rank]
    x = np.arange(192, dtype=np.float32).reshape(1, 8, 8, 3)
    before, after = (open_bytes(to_bytes(m)).run({"x": x})["y"] for m in (model, cleaned))
    assert np.array_equal(before, after)
