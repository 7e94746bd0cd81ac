"""The integer kernels that onnxruntime engages for what the exporter writes, and the float islands it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.quantization.engine import quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.verification.integer_kernels import Kernels, inspect_kernels
from profiles.schema import Precision
from runtimes.errors import ModelLoadError
from runtimes.session import Array, TensorSpec
from tests.compiler.hub_models import hub

RNG = np.random.default_rng(5)


def weights(*shape: int) -> Array:
    return (0.2 * RNG.standard_normal(shape)).astype(np.float32)


def of(model: ir.Model, folder: Path, options: QuantizeOptions | None = None) -> Kernels:
    """Quantize on random data, export, inspect."""
    spec = TensorSpec("x", "float32", tuple(int(d) for d in model.graph.inputs[0].shape or ()))
    samples = RNG.uniform(-2, 2, (16, *spec.shape[1:])).astype(np.float32)  # type: ignore[misc]
    made = quantize(model, make_dataset({"x": samples}, (spec,), where="test"), options)
    return inspect_kernels(
        EXPORTERS.get("onnx").export(made.model, folder / "m.onnx", ExportOptions(Precision.INT8)).path
    )


CONVOLUTIONS = """g (float[1, 4, 8, 8] x) => (float[1, 3] y) {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu(c)
  d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, dw) k = Clip(d, low, high)
  a = Add(r, k) m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
  n = Concat <axis = 1> (m, m) p = GlobalAveragePool(n) f = Flatten(p) y = Gemm(f, v)
}"""
ATTENTION = """g (float[1, 6, 8] x) => (float[1, 6, 8] y) {
  q = MatMul(x, wq) k = MatMul(x, wk) t = Transpose <perm = [0, 2, 1]> (k)
  s = MatMul(q, t) p = Softmax <axis = -1> (s) y = MatMul(p, q)
}"""
GATE = """g (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y) {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b) p = GlobalAveragePool(c) e = Conv(p, v) s = Sigmoid(e) y = Mul(c, s)
}"""
ISLAND = """g (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y) {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b) h = OP(c) y = Conv(h, v)
}"""
CONSTANTS = {"w": weights(8, 4, 3, 3), "b": weights(8)}


@pytest.mark.parametrize(
    ("text", "constants", "integer"),
    (
        (
            CONVOLUTIONS,
            CONSTANTS | {"dw": weights(8, 1, 3, 3), "v": weights(16, 3), "low": np.float32(0), "high": np.float32(6)},
            {"QLinearConv": 2, "QLinearAdd": 1, "QLinearConcat": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1},
        ),
        (ATTENTION, {"wq": weights(8, 8), "wk": weights(8, 8)}, {"QLinearMatMul": 4, "QLinearSoftmax": 1}),
        (
            GATE,
            CONSTANTS | {"v": weights(8, 8, 1, 1)},
            {"QLinearConv": 2, "QLinearGlobalAveragePool": 1, "QLinearSigmoid": 1, "QLinearMul": 1},
        ),
    ),
    ids=("convolutions", "attention", "gate"),
)
def test_everything_runs_in_integers(
    tmp_path: Path, text: str, constants: dict[str, Array], integer: dict[str, int]
) -> None:
    found = of(hub(text, **{name: np.asarray(array) for name, array in constants.items()}), tmp_path)
    assert found.integer == dict(sorted(integer.items()))
    assert found.float_nodes == ()
    assert found.conversions == 0


def test_an_operator_without_an_integer_kernel_is_an_island(tmp_path: Path) -> None:
    found = of(hub(ISLAND.replace("OP", "Tanh"), **CONSTANTS, v=weights(8, 8, 1, 1)), tmp_path)
    assert found.integer == {"QLinearConv": 2}
    (island,) = found.float_nodes
    assert (island.op_type, island.why) == ("Tanh", "onnxruntime has no integer kernel for Tanh")
    assert found.conversions == 2


def test_an_operator_that_onnxruntime_takes_apart_is_an_island_too(tmp_path: Path) -> None:
    found = of(hub(ISLAND.replace("OP", "HardSwish"), **CONSTANTS, v=weights(8, 8, 1, 1)), tmp_path)
    assert {node.op_type: node.why for node in found.float_nodes} == dict.fromkeys(
        ("HardSigmoid", "Mul"), "onnxruntime made it of an operator that it has no kernel for"
    )


def test_what_the_plan_left_in_float_says_so(tmp_path: Path) -> None:
    model = hub(GATE, **CONSTANTS, v=weights(8, 8, 1, 1))
    first = next(node for node in model.graph if node.op_type == "Conv")
    found = of(model, tmp_path, QuantizeOptions(keep_float=(str(first.name),)))
    assert ("Conv", "planned in float") in {(node.op_type, node.why) for node in found.float_nodes}


UNFUSED = """<ir_version: 10, opset_import: ["": 21]> g (float[1, 4] x) => (float[1, 4] y)
<float s = {0.02}, uint8 z = {128}, float t = {0.05}, uint8 u = {0}> {
  q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = Add(d, d) r = Mul(m, m)
  n = QuantizeLinear(r, t, u) y = DequantizeLinear(n, t, u)
}"""


def test_pairs_that_do_not_match_are_named(tmp_path: Path) -> None:
    """Between Add and Mul there is no pair, so neither of them has codes on both sides."""
    onnx.save(onnx.parser.parse_model(UNFUSED), tmp_path / "m.onnx")
    found = inspect_kernels(tmp_path / "m.onnx")
    assert found.integer == {}
    assert [node.op_type for node in found.float_nodes] == ["Add", "Mul"]
    assert {node.why for node in found.float_nodes} == {"onnxruntime did not fuse it with the pairs around it"}


def test_a_file_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a nothing")
    with pytest.raises(ModelLoadError, match=r"m\.onnx"):
        inspect_kernels(tmp_path / "m.onnx")
