"""Hand-made QDQ: each operator runs on int8 (or says that it does not) and stays within one step of onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from profiles.schema import Precision
from tests.compiler.exporters.tflite.support import export, hub, ops_in, reference, run, text

pytest.importorskip("ai_edge_litert")

HEAD = '<ir_version: 10, opset_import: ["": 21]> g (float[1,4,6,6] x) => (float[1,%d,%d,%d] y) '
SCALES = """<float sx = {0.02}, int8 zx = {3}, float sw = {0.01}, int8 zw = {-5}, float sy = {0.03}, int8 zy = {-7},
 float[4] sk = {0.004, 0.002, 0.003, 0.005}, int8[4] zk = {0, 0, 0, 0}, float small = {0.4}>"""
QX = "qx = QuantizeLinear(x, sx, zx) dx = DequantizeLinear(qx, sx, zx) "
QY = " qy = QuantizeLinear(r, sy, zy) y = DequantizeLinear(qy, sy, zy) "
BODIES = {
    "hardswish": ("r = HardSwish(dx)", (4, 6, 6), "HARD_SWISH"),
    "sigmoid": ("r = Sigmoid(dx)", (4, 6, 6), "LOGISTIC"),
    "relu": ("r = Relu(dx)", (4, 6, 6), "RELU"),
    "clip": ("lo = Constant<value_float: float = -10.0>() r = Clip(dx, lo)", (4, 6, 6), ""),
    "add": ("q2 = QuantizeLinear(dx, sw, zw) d2 = DequantizeLinear(q2, sw, zw) r = Add(dx, d2)", (4, 6, 6), "ADD"),
    "concat": (
        "q2 = QuantizeLinear(dx, sw, zw) d2 = DequantizeLinear(q2, sw, zw) r = Concat<axis = 1>(dx, d2)",
        (8, 6, 6),
        "CONCATENATION",
    ),
    "mean": ("r = GlobalAveragePool(dx)", (4, 1, 1), "MEAN"),
    "maxpool": (
        "r = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(dx)",
        (4, 3, 3),
        "MAX_POOL_2D",
    ),
    "averagepool": ("r = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(dx)", (4, 3, 3), "AVERAGE_POOL_2D"),
    "mul_broadcast": (
        "m = GlobalAveragePool(dx) qm = QuantizeLinear(m, sw, zw) dm = DequantizeLinear(qm, sw, zw) r = Mul(dx, dm)",
        (4, 6, 6),
        "MUL",
    ),
    "depthwise": (
        "dk = DequantizeLinear<axis = 0>(k, sk, zk) "
        "r = Conv<group = 4, kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(dx, dk)",
        (4, 6, 6),
        "DEPTHWISE_CONV_2D",
    ),
    "conv_relu_asymmetric_pads": (
        "dk = DequantizeLinear<axis = 0>(k4, sk, zk) "
        "c = Conv<kernel_shape = [3, 3], pads = [2, 0, 0, 1]>(dx, dk) r = Relu(c)",
        (4, 6, 5),
        "CONV_2D",
    ),
}


@pytest.mark.parametrize("name", sorted(BODIES))
def test_within_one_step(tmp_path: Path, name: str) -> None:
    body, shape, expected = BODIES[name]
    source = text(
        HEAD % shape
        + SCALES
        + " {"
        + QX
        + body.replace("lo = Constant<value_float: float = -10.0>()", "").replace("Clip(dx, lo)", "Clip(dx, low)")
        + QY
        + "}"
    )
    rng = np.random.default_rng(7)
    for tensor, size in (("k", (4, 1, 3, 3)), ("k4", (4, 4, 3, 3))):
        source.graph.initializer.append(numpy_helper.from_array(rng.integers(-127, 128, size, np.int8), tensor))
    source.graph.initializer.append(numpy_helper.from_array(np.float32(-10), "low"))
    model = hub(source)
    result = export(model, tmp_path / "m.tflite", Precision.INT8)
    feeds = {"x": rng.uniform(-2.5, 2.5, (1, 4, 6, 6)).astype(np.float32)}
    steps = np.abs(run(result.path, feeds)["y"] - reference(model, feeds)["y"]) / 0.03
    # Fixed output ranges and requantized averages round twice; each rounding moves a value by half a step at most.
    assert steps.max() <= 1.01, (name, steps.max(), ops_in(result.path))
    assert expected in ("", *ops_in(result.path))
    assert not any("float" in note for note in result.notes), result.notes
    assert ops_in(result.path).count("DEQUANTIZE") == 1
