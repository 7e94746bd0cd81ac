"""Weights with a scale per block, and 16-bit activations with a zero point: both in forms that LiteRT's kernels hold."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from profiles.schema import Precision
from tests.compiler.exporters.tflite.support import export, hub, ops_in, reference, run, text

pytest.importorskip("ai_edge_litert")
INPUTS, OUTPUTS, BLOCK = 24, 10, 8
BODIES = {
    "gemm": ("y = Gemm(x, w)", 0),
    "gemm_transposed": ("y = Gemm<transB = 1>(x, w)", 1),
    "matmul": ("y = MatMul(x, w)", 0),
}


def blocked(name: str, dtype: str, block: int = BLOCK, *, asymmetric: bool = False) -> ir.Model:
    """x [3, INPUTS] times codes with one scale per ``block`` inputs and per output."""
    body, axis = BODIES[name]
    rng = np.random.default_rng(3)
    shape = (INPUTS, OUTPUTS) if axis == 0 else (OUTPUTS, INPUTS)
    blocks = tuple(-(-n // block) if a == axis else n for a, n in enumerate(shape))
    high = 8 if dtype == "int4" else 128
    codes = rng.integers(-high, high, shape).astype(ml_dtypes.int4 if dtype == "int4" else np.int8)
    zero = rng.integers(-2, 3, blocks) if asymmetric else np.zeros(blocks)
    source = text(
        f'<ir_version: 10, opset_import: ["": 21]> g (float[3,{INPUTS}] x) => (float[3,{OUTPUTS}] y) '
        f"{{ w = DequantizeLinear<axis = {axis}, block_size = {block}>(codes, scale, zero) {body} }}"
    )
    for key, array in (
        ("codes", codes),
        ("scale", rng.uniform(0.01, 0.1, blocks).astype(np.float32)),
        ("zero", zero.astype(codes.dtype)),
    ):
        source.graph.initializer.append(ir.to_proto(ir.tensor(array, name=key)))
    return hub(source)


def x() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(5).standard_normal((3, INPUTS)).astype(np.float32)}


@pytest.mark.parametrize("asymmetric", (False, True))
@pytest.mark.parametrize("dtype", ("int8", "int4"))
@pytest.mark.parametrize("name", sorted(BODIES))
def test_blocks_stay_integers(tmp_path: Path, name: str, dtype: str, asymmetric: bool) -> None:
    model = blocked(name, dtype, asymmetric=asymmetric)
    precision = Precision.INT4_WEIGHTS if dtype == "int4" else Precision.INT8_WEIGHTS
    result = export(model, tmp_path / "m.tflite", precision)
    np.testing.assert_allclose(run(result.path, x())["y"], reference(model, x())["y"], rtol=1e-5, atol=1e-5)
    assert ops_in(result.path) == ["DEQUANTIZE", "RESHAPE", "FULLY_CONNECTED"]


def test_a_short_last_block_is_stored_in_float_and_noted(tmp_path: Path) -> None:
    model = blocked("matmul", "int8", block=16)
    result = export(model, tmp_path / "m.tflite", Precision.INT8_WEIGHTS)
    np.testing.assert_allclose(run(result.path, x())["y"], reference(model, x())["y"], rtol=1e-5, atol=1e-5)
    assert any("last block is shorter than 16" in note for note in result.notes)


@pytest.mark.parametrize(("dtype", "zero"), (("int16", 1234), ("int16", -32768), ("uint16", 20000)))
def test_sixteen_bits_with_a_zero_point_run_in_integers(tmp_path: Path, dtype: str, zero: int) -> None:
    """The kernels have no zero point, so the scale grows to hold the range; values stay within a step or two of the hub's."""
    step, shift = 0.0002, 0.0004
    source = text(
        '<ir_version: 10, opset_import: ["": 21]> g (float[1,4,4] x) => (float[1,4,4] y) '
        f"<float s = {{{step}}}, float t = {{{shift}}}> {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "r = Add(d, d) q2 = QuantizeLinear(r, t, z) y = DequantizeLinear(q2, t, z) }"
    )
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(zero, dtype), "z"))
    model = hub(source)
    result = export(model, tmp_path / "m.tflite", Precision.INT16X8)
    low = (np.iinfo(dtype).min - zero) * step
    # Beyond both ends too: what the hub clips there may be a ReLU.
    feeds = {"x": np.linspace(low - 9000 * step, low + 75000 * step, 16, dtype=np.float32).reshape(1, 4, 4)}
    got, want = run(result.path, feeds)["y"], reference(model, feeds)["y"]
    bounds = ("MAXIMUM", "MINIMUM")
    assert [op for op in ops_in(result.path) if op not in bounds] == ["QUANTIZE", "ADD", "DEQUANTIZE"]
    assert np.abs(got - want).max() <= 2 * shift
    assert zero == 0 or np.ptp(want) > 10
