"""Operators and forms that ONNX's node tests leave out, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compiler.exporters.coreml.support import (
    Arrays,
    export,
    exported_answers,
    hub,
    parse,
    random_feeds,
    reference,
    relative_error,
)

GENERATOR = np.random.default_rng(11)
W = GENERATOR.standard_normal((4, 2, 3, 3)).astype(np.float32)
B = GENERATOR.standard_normal((4,)).astype(np.float32)
M = GENERATOR.standard_normal((6, 5)).astype(np.float32)

# name: (graph body, initializers); every graph maps x to y.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "conv same upper strided": (
        '(float[1, 2, 7, 8] x) => (float[1, 4, 4, 4] y) { y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w, b) }',
        {"w": W, "b": B},
    ),
    "conv same lower even kernel": (
        '(float[1, 2, 7, 8] x) => (float[1, 4, 7, 8] y) { y = Conv <auto_pad = "SAME_LOWER"> (x, w) }',
        {"w": W[:, :, :2, :2].copy()},
    ),
    "conv grouped dilated uneven pads": (
        "(float[1, 4, 9, 9] x) => (float[1, 4, 6, 10] y) "
        "{ y = Conv <group = 2, dilations = [2, 1], pads = [1, 2, 0, 1]> (x, w, b) }",
        {"w": W, "b": B},
    ),
    "conv one axis": (
        "(float[1, 2, 9] x) => (float[1, 4, 9] y) { y = Conv <pads = [1, 1]> (x, w, b) }",
        {"w": W[..., 0].copy(), "b": B},
    ),
    "conv weight computed at run time": (
        "(float[1, 2, 6, 6] x, float[4, 2, 3, 3] v) => (float[1, 4, 4, 4] y) { y = Conv (x, v, b) }",
        {"b": B},
    ),
    "conv transpose output padding beyond its pads": (
        "(float[1, 4, 5, 5] x) => (float[1, 2, 12, 12] y) "
        "{ y = ConvTranspose <strides = [2, 2], output_padding = [1, 1]> (x, w, b) }",
        {"w": W, "b": B[:2].copy()},
    ),
    "conv transpose grouped": (
        "(float[1, 4, 5, 5] x) => (float[1, 4, 10, 10] y) { y = ConvTranspose "
        "<group = 2, strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (x, w, b) }",
        {"w": W, "b": B},
    ),
    "average pool ceil mode counts own padding only": (
        "(float[1, 2, 8, 8] x) => (float[1, 2, 5, 5] y) { y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], "
        "pads = [1, 1, 1, 1], ceil_mode = 1, count_include_pad = 1> (x) }",
        {},
    ),
    "max pool ceil mode": (
        "(float[1, 2, 8, 8] x) => (float[1, 2, 4, 4] y) "
        "{ y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x) }",
        {},
    ),
    "gemm transposed scaled": (
        "(float[6, 2] x) => (float[2, 5] y) { y = Gemm <transA = 1, alpha = 0.5, beta = 2.0> (x, m, c) }",
        {"m": M, "c": B[:1].copy()},
    ),
    "gemm bias of its own rows": (
        "(float[2, 6] x) => (float[2, 5] y) { y = Gemm (x, m, c) }",
        {"m": M, "c": np.float32([[1], [2]])},
    ),
    "gemm of two inputs": (
        "(float[2, 6] x, float[5, 6] z) => (float[2, 5] y) { y = Gemm <transB = 1, alpha = 3.0> (x, z) }",
        {},
    ),
    "matmul rank 4 with a constant": ("(float[1, 2, 3, 6] x) => (float[1, 2, 3, 5] y) { y = MatMul (x, m) }", {"m": M}),
    "matmul vector": ("(float[6] x) => (float[5] y) { y = MatMul (x, m) }", {"m": M}),
    "matmul constant on the left": ("(float[5, 3] x) => (float[6, 3] y) { y = MatMul (m, x) }", {"m": M}),
    "pad constant": (
        "(float[1, 2, 3, 4] x) => (float[1, 3, 6, 4] y) { y = Pad (x, p, v) }",
        {"p": np.array([0, 1, 1, 0, 0, 0, 2, 0]), "v": np.array(1.5, np.float32)},
    ),
    "pad reflect": (
        '(float[1, 1, 4, 4] x) => (float[1, 1, 7, 6] y) { y = Pad <mode = "reflect"> (x, p) }',
        {"p": np.array([0, 0, 1, 2, 0, 0, 2, 0])},
    ),
    "pad negative": (
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 3] y) { y = Pad (x, p) }",
        {"p": np.array([0, 0, -1, 0, 0, 0, 1, -1])},
    ),
    "pad edge on chosen axes": (
        '(float[1, 1, 4, 4] x) => (float[1, 1, 4, 7] y) { y = Pad <mode = "edge"> (x, p, , a) }',
        {"p": np.array([1, 2]), "a": np.array([-1])},
    ),
    "cast there and back": (
        "(float[2, 3] x) => (float[2, 3] y) { i = Cast <to = 7> (s)  s = Mul (x, k)  y = Cast <to = 1> (i) }",
        {"k": np.array(3, np.float32)},
    ),
    "cast to bool keeps fractions": (
        "(float[2, 3] x) => (float[2, 3] y) { f = Floor (x)  b = Cast <to = 9> (x)  y = Where (b, f, x) }",
        {},
    ),
    "log softmax of large numbers": (
        "(float[2, 8] x) => (float[2, 8] y) { b = Mul (x, k)  y = LogSoftmax (b) }",
        {"k": np.array(50, np.float32)},
    ),
    "log sum exp": ("(float[2, 8] x) => (float[2, 1] y) { y = ReduceLogSumExp (x, a) }", {"a": np.array([1])}),
    "mean of all to a scalar": (
        "(float[2, 8] x) => (float[2, 8] y) { m = ReduceMean <keepdims = 0> (x)  y = Sub (x, m) }",
        {},
    ),
    "gather with negative and scalar indices": (
        "(float[4, 3] x) => (float[3] y) { g = Gather (x, i)  y = Gather (g, s) }",
        {"i": np.array([-1, 0]), "s": np.array(-2)},
    ),
    "where broadcast by its condition": (
        "(float[1, 3] x) => (float[2, 3] y) { y = Where (c, x, k) }",
        {"c": np.array([[True], [False]]), "k": np.array(2, np.float32)},
    ),
    "slice backwards": (
        "(float[5, 4] x) => (float[5, 2] y) { y = Slice (x, s, e, a, t) }",
        {"s": np.array([-1, 3]), "e": np.array([-99, 0]), "a": np.array([0, 1]), "t": np.array([-1, -2])},
    ),
    "prelu of another shape": ("(float[2, 3] x) => (float[2, 3] y) { y = PRelu (x, s) }", {"s": B[:3].copy()}),
    "resize linear half pixel": (
        '(float[1, 2, 4, 5] x) => (float[1, 2, 8, 10] y) { y = Resize <mode = "linear"> (x, , s) }',
        {"s": np.float32([1, 1, 2, 2])},
    ),
    "resize linear of rank 3": (
        '(float[1, 2, 5] x) => (float[1, 2, 10] y) { y = Resize <mode = "linear"> (x, , s) }',
        {"s": np.float32([1, 1, 2])},
    ),
    "min max of many": (
        "(float[2, 3] x) => (float[2, 3] y) { a = Max (x, k, l)  y = Min (a, m, x) }",
        {"k": B[:3].copy(), "l": np.array(0.1, np.float32), "m": np.float32([[1], [0.5]])},
    ),
    "batch norm of rank 2": (
        "(float[3, 4] x) => (float[3, 4] y) { y = BatchNormalization (x, g, b, m, v) }",
        {"g": B, "b": B[::-1].copy(), "m": B * 2, "v": B * B + 1},
    ),
}


def _model(name: str) -> Any:
    body, constants = CASES[name]
    text = body.replace("i = Cast <to = 7> (s)  s = Mul (x, k)", "s = Mul (x, k)  i = Cast <to = 7> (s)")
    return hub(parse(f"net {text}", **constants))


@pytest.mark.parametrize("name", CASES)
def test_float32_equals_onnxruntime(tmp_path: Path, name: str) -> None:
    model = _model(name)
    feeds = random_feeds(model)
    want = reference(model, feeds)
    # Float32 sums of some dozen terms in another order.
    assert relative_error(exported_answers(model, feeds, tmp_path), want) <= 1e-6


@pytest.mark.parametrize("name", sorted(set(CASES) - {"cast there and back"}))
def test_float16_is_near(tmp_path: Path, name: str) -> None:
    """Inputs, constants and up to three results, each rounded by 2**-11 of the range or less, with sums' gain of two.

    Left out: a cast to integer, where rounding x decides between two whole numbers.
    """
    model = _model(name)
    feeds = random_feeds(model)
    if name == "cast to bool keeps fractions":
        feeds = {"x": np.round(feeds["x"] * 8) / np.float32(8)}
    want = reference(model, feeds)
    assert relative_error(exported_answers(model, feeds, tmp_path, "fp16"), want) <= 10 * 2**-11


def test_gather_by_indices_computed_at_run_time(tmp_path: Path) -> None:
    model = hub(parse("net (float[4, 3] x, int64[2] i) => (float[2, 3] y) { y = Gather (x, i) }"))
    feeds: Arrays = {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "i": np.array([-1, 2])}
    np.testing.assert_array_equal(exported_answers(model, feeds, tmp_path)["y"], feeds["x"][[3, 2]])


def test_integer_division_goes_toward_zero(tmp_path: Path) -> None:
    model = hub(parse("net (int32[4] a, int32[4] b) => (int32[4] y) { y = Div (a, b) }"))
    feeds: Arrays = {"a": np.int32([7, -7, 7, -7]), "b": np.int32([2, 2, -2, -2])}
    np.testing.assert_array_equal(exported_answers(model, feeds, tmp_path)["y"], [3, -3, -3, 3])


QDQ = """
net (float[1, 2, 6, 6] x) => (float[1, 4, 6, 6] y) {
    xq = QuantizeLinear (x, sx, zx)
    xf = DequantizeLinear (xq, sx, zx)
    wf = DequantizeLinear <axis = 0> (wq, sw, zw)
    bf = DequantizeLinear <axis = 0> (bq, sb, zb)
    c = Conv <pads = [1, 1, 1, 1]> (xf, wf, bf)
    r = Relu (c)
    yq = QuantizeLinear (r, sy, zy)
    y = DequantizeLinear (yq, sy, zy)
}
"""


def qdq_model() -> Any:
    """A quantized hub in the form of compiler/hub.py."""
    scales = np.abs(W).reshape(4, -1).max(axis=1) / np.float32(127)
    return hub(
        parse(
            QDQ,
            sx=np.array(0.02, np.float32),
            zx=np.array(-5, np.int8),
            wq=np.rint(W / scales[:, None, None, None]).astype(np.int8),
            sw=scales,
            zw=np.zeros(4, np.int8),
            bq=np.rint(B / (scales * np.float32(0.02))).astype(np.int32),
            sb=(scales * np.float32(0.02)).astype(np.float32),
            zb=np.zeros(4, np.int32),
            sy=np.array(0.05, np.float32),
            zy=np.array(-128, np.int8),
        )
    )


@pytest.mark.parametrize(
    ("target", "operation"), [("iOS17", "constexpr_affine_dequantize"), ("iOS18", "constexpr_blockwise_shift_scale")]
)
def test_a_quantized_hub_keeps_its_numbers(tmp_path: Path, target: str, operation: str) -> None:
    import coremltools as ct

    model = qdq_model()
    feeds = random_feeds(model)
    got, want = exported_answers(model, feeds, tmp_path, "int8", target)["y"], reference(model, feeds)["y"]
    assert np.mean(np.abs(got - want) <= 1.001 * 0.05) >= 0.99
    spec = ct.utils.load_spec(str(export(model, tmp_path, "int8", target)[0]))
    block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
    kinds = [op.type for op in block.operations]
    assert kinds.count(operation) == 1
    assert kinds.count("quantize") == kinds.count("dequantize") == 2


def test_scales_in_the_file_are_the_hubs(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = qdq_model()
    path, result = export(model, tmp_path, "int8")
    spec = ct.utils.load_spec(str(path))
    program = load(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))
    found = {op.op_type: op for op in program.functions["main"].operations}
    values = {k: v.const_value.numpy() for k, v in model.graph.initializers.items() if v.const_value is not None}
    np.testing.assert_array_equal(found["constexpr_affine_dequantize"].scale.val, values["sw"])
    np.testing.assert_array_equal(found["constexpr_affine_dequantize"].quantized_data.val, values["wq"])
    assert found["dequantize"].scale.val == values["sy"]
    assert found["dequantize"].zero_point.val == values["zy"]
    np.testing.assert_array_equal(found["conv"].bias.val, values["bq"].astype(np.float32) * values["sb"])
    assert any("float32" in note for note in result.notes)
