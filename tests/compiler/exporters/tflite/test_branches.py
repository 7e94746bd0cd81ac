"""If with a run-time condition: one of two subgraphs runs in LiteRT, against onnxruntime with either condition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.errors import UnsupportedModel
from compiler.exporters.base import ExportOptions
from compiler.exporters.tflite import EXPORTER
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from profiles.schema import IntegerIO, Precision
from tests.compiler.exporters.tflite import support

pytest.importorskip("ai_edge_litert")

# Two results; the branches share what comes before, one hands a value on as it is, one needs a decomposition.
CHOICE = """
<ir_version: 10, opset_import: ["": 21]>
g (bool c, float[1, 8, 16, 16] x) => (float[1, 8, 16, 16] y, float[1, 8, 16, 16] z) {
  [before] s = Relu (x)
  [if] a, b = If (c) <then_branch = t () => (float[1, 8, 16, 16] p, float[1, 8, 16, 16] q) {
    [conv] u = Conv <pads = [1, 1, 1, 1]> (s, w)
    [mish] p = Mish (u)
    [same] q = Identity (s)
  }, else_branch = e () => (float[1, 8, 16, 16] p, float[1, 8, 16, 16] q) {
    [other] v = Conv <pads = [1, 1, 1, 1]> (s, k)
    [relu] p = Relu (v)
    [double] q = Add (p, s)
  }>
  [after] y = Tanh (a)
  [last] z = Sub (b, a)
}
"""


def _model(text: str = CHOICE) -> onnx.ModelProto:
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name in ("w", "k"):
        content = (rng.standard_normal((8, 8, 3, 3)) * 0.2).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    return model


def _hub(model: onnx.ModelProto) -> ir.Model:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return to_hub(copy, ImportOptions(batch=1))


def _feeds(condition: bool, seed: int = 0) -> dict[str, support.Array]:
    x = np.random.default_rng(seed).standard_normal((1, 8, 16, 16)).astype(np.float32)
    return {"c": np.asarray(condition), "x": x}


def _codes(path: Path) -> list[list[str]]:
    """The operators of every subgraph."""
    from ai_edge_litert import schema_py_generated as fb

    names = {number: name for name, number in vars(fb.BuiltinOperator).items() if isinstance(number, int)}
    model = fb.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    return [[codes[operator.opcodeIndex] for operator in graph.operators] for graph in model.subgraphs]


@pytest.mark.parametrize(("precision", "atol"), [(Precision.FP32, 2e-6), (Precision.FP16, 4e-3)])
def test_one_branch_runs(tmp_path: Path, precision: Precision, atol: float) -> None:
    model, path = _model(), tmp_path / "m.tflite"
    support.export(_hub(model), path, precision)
    main, then, other = _codes(path)
    assert main.count("IF") == 1 and "CONV_2D" not in main and "SELECT_V2" not in main
    assert then.count("CONV_2D") == other.count("CONV_2D") == 1
    for condition in (True, False):
        want = support.reference(model, _feeds(condition))
        got = support.run(path, _feeds(condition))
        for name in want:
            np.testing.assert_allclose(got[name], want[name], atol=atol)


def test_a_small_choice_computes_both(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (bool c, float[8] x) => (float[8] y) {
      [if] y = If (c) <then_branch = t () => (float[8] p) { [a] p = Tanh (x) }, else_branch = e () => (float[8] p) {
        [b] p = Exp (x) }>
    }
    """
    path = tmp_path / "m.tflite"
    support.export(_hub(onnx.parser.parse_model(text)), path)
    assert "IF" not in support.ops_in(path) and "SELECT_V2" in support.ops_in(path)


NESTED = """
<ir_version: 10, opset_import: ["": 21]>
g (bool c, bool d, float[1, 8, 16, 16] x) => (float[1, 8, 16, 16] y) {
  [if] y = If (c) <then_branch = t () => (float[1, 8, 16, 16] p) {
    [conv] u = Conv <pads = [1, 1, 1, 1]> (x, w)
    [inner] p = If (d) <then_branch = tt () => (float[1, 8, 16, 16] q) { [k1] q = Conv <pads = [1, 1, 1, 1]> (u, k) },
                        else_branch = te () => (float[1, 8, 16, 16] q) { [k2] q = Conv <pads = [1, 1, 1, 1]> (u, w) }>
  }, else_branch = e () => (float[1, 8, 16, 16] p) { [same] p = Identity (x) }>
}
"""


def test_choices_in_branches(tmp_path: Path) -> None:
    model, path = _model(NESTED), tmp_path / "m.tflite"
    support.export(_hub(model), path)
    assert sum(codes.count("IF") for codes in _codes(path)) == 2
    for first in (True, False):
        for second in (True, False):
            feeds = {**_feeds(first), "d": np.asarray(second)}
            want = support.reference(model, feeds)["y"]
            np.testing.assert_allclose(support.run(path, feeds)["y"], want, rtol=2e-6, atol=4e-6)


# One scale for both sides and the result: LiteRT's integers are then the hub's.
INTEGERS = """
<ir_version: 10, opset_import: ["": 21]>
g (bool c, float[1, 8, 16, 16] x) => (float[1, 8, 16, 16] y)
  <float s = {0.05}, int8 z = {0}, float ws = {0.01}, int32[8] b = {0, 1, 2, 3, 4, 5, 6, 7}, float bs = {0.0005}, int32 bz = {0}> {
  [qx] xq = QuantizeLinear (x, s, z)
  [dx] xd = DequantizeLinear (xq, s, z)
  [dw] wd = DequantizeLinear (w, ws, z)
  [dk] kd = DequantizeLinear (k, ws, z)
  [db] bd = DequantizeLinear (b, bs, bz)
  [conv] u = Conv <pads = [1, 1, 1, 1]> (xd, wd, bd)
  [qu] uq = QuantizeLinear (u, s, z)
  [du] ud = DequantizeLinear (uq, s, z)
  [other] v = Conv <pads = [1, 1, 1, 1]> (xd, kd, bd)
  [qv] vq = QuantizeLinear (v, s, z)
  [dv] vd = DequantizeLinear (vq, s, z)
  [choose] t = Where (c, ud, vd)
  [qt] tq = QuantizeLinear (t, s, z)
  [dt] y = DequantizeLinear (tq, s, z)
}
"""


def test_integers_stay_integers_in_the_branches(tmp_path: Path) -> None:
    model, rng = onnx.parser.parse_model(INTEGERS), np.random.default_rng(0)
    for name in ("w", "k"):
        content = rng.integers(-100, 100, (8, 8, 3, 3)).astype(np.int8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    path = tmp_path / "m.tflite"
    options = ExportOptions(precision=Precision.INT8, integer_io=IntegerIO.INT8)  # strict: no node may compute in float
    EXPORTER.export(support.hub(model), path, options)
    main, *branches = _codes(path)
    assert "IF" in main and len(branches) == 2
    for condition in (True, False):
        want = support.reference(model, _feeds(condition))["y"]
        got = support.run(path, _feeds(condition))["y"]  # the session quantizes what goes in
        steps = np.abs(np.rint(got / np.float32(0.05)) - np.rint(want / np.float32(0.05)))
        assert steps.max() <= 1 and (steps == 0).mean() > 0.99


def test_float_inside_a_branch_is_named_when_integers_are_asked_for(tmp_path: Path) -> None:
    text = INTEGERS.replace(
        "[qv] vq = QuantizeLinear (v, s, z)", "[exp] f = Exp (v)\n  [qv] vq = QuantizeLinear (f, s, z)"
    )
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name in ("w", "k"):
        content = rng.integers(-100, 100, (8, 8, 3, 3)).astype(np.int8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    options = ExportOptions(precision=Precision.INT8, integer_io=IntegerIO.INT8)
    with pytest.raises(UnsupportedModel, match="float32") as caught:
        EXPORTER.export(support.hub(model), tmp_path / "m.tflite", options)
    assert any(refusal.node == "exp" for refusal in caught.value.refusals)
