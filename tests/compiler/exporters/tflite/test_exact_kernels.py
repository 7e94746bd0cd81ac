"""Hand-made QDQ whose integers are equal to onnxruntime's, not just within a step: lowerings chosen for how their kernel rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from profiles.schema import Precision
from tests.compiler.exporters.tflite.support import export, hub, ops_in, reference, run, text

pytest.importorskip("ai_edge_litert")

SCALE = 0.03515625  # 9 / 256: averages of four codes are exact in float32, halves too
HEAD = '<ir_version: 10, opset_import: ["": 21]> g (float[1,4,16,16] x) => (float[1,4,%d,%d] y) '
SAME = f"float sy = {{{SCALE}}}, int8 zy = {{3}}"
CASES = {
    "halves of four": ("r = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(dx)", 8, SAME, "DEPTHWISE_CONV_2D"),
    "nine": ("r = AveragePool<kernel_shape = [3, 3]>(dx)", 14, SAME, "DEPTHWISE_CONV_2D"),
    "with its pads": (
        "r = AveragePool<kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1>(dx)",
        9,
        SAME,
        "DEPTHWISE_CONV_2D",
    ),
    "relu": ("r = Relu(dx)", 16, "float sy = {0.0183}, int8 zy = {-128}", "MUL"),
    "relu of signed codes": ("r = Relu(dx)", 16, "float sy = {0.0411}, int8 zy = {-20}", "MUL"),
    "relu6": ("r = Clip(dx, low, six)", 16, "float sy = {0.0293}, int8 zy = {-100}", "MUL"),
    "relu6 by range": ("r = Clip(dx, low, six)", 16, "float sy = {0.02352941}, int8 zy = {-128}", "MUL"),
    "another scale": ("r = Reshape(dx, as_it_is)", 16, "float sy = {0.0301}, int8 zy = {-9}", "MUL"),
}


@pytest.mark.parametrize("name", CASES)
def test_integers_are_equal(name: str, tmp_path: Path) -> None:
    body, size, out, kernel = CASES[name]
    source = text(
        HEAD % (size, size)
        + f"<float sx = {{{SCALE}}}, int8 zx = {{3}}, {out}, float low = {{0.0}}, float six = {{6.0}}, "
        + "int64[4] as_it_is = {1, 4, 16, 16}> { qx = QuantizeLinear(x, sx, zx) dx = DequantizeLinear(qx, sx, zx) "
        + body
        + " qy = QuantizeLinear(r, sy, zy) y = DequantizeLinear(qy, sy, zy) }"
    )
    model = hub(source)
    codes = np.random.default_rng(5).permutation(np.arange(1024) % 256 - 128).reshape(1, 4, 16, 16)
    feeds = {"x": ((codes - 3) * np.float32(SCALE)).astype(np.float32)}
    result = export(model, tmp_path / "m.tflite", Precision.INT8)
    want, got = reference(model, feeds)["y"], run(result.path, feeds)["y"]
    scale = float(out.split("{")[1].split("}")[0])
    assert np.array_equal(np.rint(want / scale), np.rint(got / scale))
    assert len(np.unique(got)) > 50
    assert kernel in ops_in(result.path)


GATED = """<ir_version: 10, opset_import: ["": 21]> g (float[1,4,1,1] x) => (float[1,6,1,1] y) {
  c = Conv(x, w%s) h = HardSigmoid<alpha = %s, beta = 0.5>(c) y = Mul(h, h) }"""


@pytest.mark.parametrize(
    ("bias", "alpha", "adds"), [(", b", "0.16666667", 0), ("", "0.16666667", 0), (", b", "0.2", 1)]
)
def test_a_float_hard_sigmoid_adds_its_three_with_the_bias(bias: str, alpha: str, adds: int, tmp_path: Path) -> None:
    source = text(GATED % (bias, alpha))
    rng = np.random.default_rng(3)
    for name, size in (("w", (6, 4, 1, 1)), ("b", (6,))):
        source.graph.initializer.append(numpy_helper.from_array(rng.normal(size=size).astype(np.float32) * 3, name))
    model = hub(source)
    result = export(model, tmp_path / "m.tflite", Precision.FP32)
    feeds = {"x": rng.normal(size=(1, 4, 1, 1)).astype(np.float32)}
    np.testing.assert_allclose(run(result.path, feeds)["y"], reference(model, feeds)["y"], atol=1e-6)
    assert ops_in(result.path).count("ADD") == adds


def test_a_hard_sigmoid_beside_another_reader_stays_by_itself(tmp_path: Path) -> None:
    source = text(
        '<ir_version: 10, opset_import: ["": 21]> g (float[1,4,1,1] x) => (float[1,4,1,1] y) '
        "{ c = Conv(x, w) h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c) y = Mul(h, c) }"
    )
    weight = np.random.default_rng(3).normal(size=(4, 4, 1, 1)).astype(np.float32)
    source.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = hub(source)
    result = export(model, tmp_path / "m.tflite", Precision.FP32)
    feeds = {"x": np.ones((1, 4, 1, 1), np.float32)}
    np.testing.assert_allclose(run(result.path, feeds)["y"], reference(model, feeds)["y"], atol=1e-6)
    assert "ADD" in ops_in(result.path)
