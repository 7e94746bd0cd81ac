"""Hand-made QDQ: each operator runs on int8 and on int16 and stays within one step of onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from profiles.schema import Precision
from tests.compiler.exporters.tflite.support import export, hub, ops_in, reference, run, text

pytest.importorskip("ai_edge_litert")

HEAD = '<ir_version: 10, opset_import: ["": 21]> g (float[1,4,6,6] x) => (float[1,%d,%d,%d] y) '
WEIGHTS = """float[4] sk = {0.004, 0.002, 0.003, 0.005}, int8[4] zk = {0, 0, 0, 0},
 int64[2] ax = {2, 3}, int64[4] sizes = {1, 4, 12, 12}>"""
SCALES = {
    8: "<float sx = {0.02}, int8 zx = {3}, float sw = {0.01}, int8 zw = {-5}, float sy = {0.03}, int8 zy = {-7}, ",
    16: "<float sx = {0.00008}, int16 zx = {0}, float sw = {0.00004}, int16 zw = {0}, "
    "float sy = {0.00012}, int16 zy = {0}, ",
}
STEP = {8: 0.03, 16: 0.00012}
QX = "qx = QuantizeLinear(x, sx, zx) dx = DequantizeLinear(qx, sx, zx) "
QY = " qy = QuantizeLinear(r, sy, zy) y = DequantizeLinear(qy, sy, zy) "
BODIES = {
    "hardswish": ("r = HardSwish(dx)", (4, 6, 6), "HARD_SWISH"),
    "sigmoid": ("r = Sigmoid(dx)", (4, 6, 6), "LOGISTIC"),
    "relu": ("r = Relu(dx)", (4, 6, 6), "MUL"),
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
    "hardsigmoid": ("r = HardSigmoid<alpha = 0.2, beta = 0.5>(dx)", (4, 6, 6), "MUL"),
    "leakyrelu": ("r = LeakyRelu<alpha = 0.1>(dx)", (4, 6, 6), "LEAKY_RELU"),
    "tanh": ("r = Tanh(dx)", (4, 6, 6), "TANH"),
    "softmax": ("r = Softmax<axis = 1>(dx)", (4, 6, 6), "SOFTMAX"),
    "sum": ("r = ReduceSum(dx, ax)", (4, 1, 1), "SUM"),
    "max": ("m = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(dx) r = Max(dx, m)", (4, 6, 6), "MAXIMUM"),
    "matmul": ("t = Transpose<perm = [0, 1, 3, 2]>(dx) r = MatMul(dx, t)", (4, 6, 6), "BATCH_MATMUL"),
    "resize": (
        'r = Resize<mode = "linear">(dx, , , sizes)',
        (4, 12, 12),
        "RESIZE_BILINEAR",
    ),
    "averagepool_counting_its_pads": (
        "r = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(dx)",
        (4, 6, 6),
        "AVERAGE_POOL_2D",
    ),
    "transposed": (
        "dk = DequantizeLinear<axis = 1>(k4, sk, zk) "
        "r = ConvTranspose<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(dx, dk)",
        (4, 11, 11),
        "TRANSPOSE_CONV",
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


@pytest.mark.parametrize("bits", (8, 16))
@pytest.mark.parametrize("name", sorted(BODIES))
def test_within_one_step(tmp_path: Path, name: str, bits: int) -> None:
    body, shape, expected = BODIES[name]
    source = text(
        HEAD % shape
        + SCALES[bits]
        + WEIGHTS
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
    result = export(model, tmp_path / "m.tflite", Precision.INT8 if bits == 8 else Precision.INT16X8)
    feeds = {"x": rng.uniform(-2.5, 2.5, (1, 4, 6, 6)).astype(np.float32)}
    steps = np.abs(run(result.path, feeds)["y"] - reference(model, feeds)["y"]) / STEP[bits]
    # Fixed output ranges and requantized averages round twice; each rounding moves a value by half a step at most.
    assert steps.max() <= 1.01, (name, steps.max(), ops_in(result.path))
    assert expected in ("", *ops_in(result.path)) or bits == 16
    assert not any("float" in note for note in result.notes), result.notes
    assert ops_in(result.path).count("DEQUANTIZE") == 1


@pytest.mark.parametrize("operator", ("ReduceMean", "ReduceSum"))
@pytest.mark.parametrize("keep", (0, 1))
@pytest.mark.parametrize(("shape", "axes"), (((1, 1, 10000), (2,)), ((2, 100, 100), (1, 2)), ((2, 4, 9000), (2,))))
def test_long_means_are_right(
    tmp_path: Path, shape: tuple[int, ...], axes: tuple[int, ...], keep: int, operator: str
) -> None:
    """XNNPACK's own kernel answers 127 to more than about 8,500 neighbours whose zero point is -128."""
    length = int(np.prod([shape[axis] for axis in axes]))
    step = 0.005 * (length if operator == "ReduceSum" else 1)
    out = [1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes]
    source = text(
        f'<ir_version: 10, opset_import: ["": 21]> g (float{list(shape)} x) => (float{out} y) '
        f"<float s = {{0.02}}, int8 z = {{-128}}, float t = {{{step}}}, int8 u = {{-128}}, int64[{len(axes)}] a = "
        f"{{{', '.join(map(str, axes))}}}> {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        f"r = {operator}<keepdims = {keep}>(d, a) p = QuantizeLinear(r, t, u) y = DequantizeLinear(p, t, u) }}"
    )
    model = hub(source)
    result = export(model, tmp_path / "m.tflite", Precision.INT8)
    feeds = {"x": np.random.default_rng(1).uniform(0, 0.2, shape).astype(np.float32)}
    got, want = run(result.path, feeds)["y"], reference(model, feeds)["y"]
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1.01 * step
