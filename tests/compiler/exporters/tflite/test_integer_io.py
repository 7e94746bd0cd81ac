"""Full-integer files: integer ports, the same numbers as with float ports, and no float computation that was not allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.errors import UnsupportedModel
from compiler.exporters.base import ExportOptions
from compiler.exporters.tflite import EXPORTER
from compiler.hubfacts import hub_inputs
from compiler.quantization.engine import quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.schemes import quantize_as
from profiles.schema import IntegerIO, Precision
from runtimes.registry import open_session
from runtimes.session import Array
from tests.compiler.exporters.tflite.support import hub, ops_in, text

pytest.importorskip("ai_edge_litert")

NET = """<ir_version: 10, opset_import: ["": 21]> g (float[1,3,16,16] image) => (float[1,10] scores) {
  a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(image, w1, b1)
  b = HardSwish(a)
  c = Conv<group = 8, pads = [1, 1, 1, 1]>(b, w2)
  d = GlobalAveragePool(c)
  e = HardSigmoid<alpha = 0.1666666716337204, beta = 0.5>(d)
  f = Mul(b, e)
  %s
  h = GlobalAveragePool(m)
  i = Flatten(h)
  j = Gemm<transB = 1>(i, w3, b3)
  scores = Softmax<axis = 1>(j)
}"""
SIZES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (10, 8), "b3": (10,)}


def net(middle: str = "m = Relu(f)") -> ir.Model:
    source = text(NET % middle)
    rng = np.random.default_rng(1)
    for name, size in SIZES.items():
        source.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), name)
        )
    return hub(source)


def samples() -> Array:
    return np.random.default_rng(2).standard_normal((40, 3, 16, 16)).astype(np.float32)


def quantized(model: ir.Model, precision: Precision) -> ir.Model:
    data = make_dataset({"image": samples()}, hub_inputs(model), where="test")
    if precision is Precision.INT8:
        return quantize(model, data, QuantizeOptions()).model
    return quantize_as(model, data, precision).model


def ports(path: Path) -> tuple[np.dtype[np.generic], np.dtype[np.generic]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    return (
        np.dtype(interpreter.get_input_details()[0]["dtype"]),
        np.dtype(interpreter.get_output_details()[0]["dtype"]),
    )


def scores(path: Path) -> Array:
    with open_session(path) as session:
        return np.concatenate([session.run({"image": sample[None]})["scores"] for sample in samples()])


@pytest.mark.parametrize(
    ("precision", "io", "expected"),
    (
        (Precision.INT8, IntegerIO.INT8, "int8"),
        (Precision.INT8, IntegerIO.UINT8, "uint8"),
        (Precision.INT16X8, IntegerIO.INT8, "int16"),
    ),
)
def test_integer_ports_give_the_numbers_of_float_ports(
    tmp_path: Path, precision: Precision, io: IntegerIO, expected: str
) -> None:
    model = quantized(net(), precision)
    plain = EXPORTER.export(model, tmp_path / "plain.tflite", ExportOptions(precision))
    full = EXPORTER.export(model, tmp_path / "full.tflite", ExportOptions(precision, integer_io=io))
    assert ports(plain.path) == (np.float32, np.float32)
    assert ports(full.path) == (np.dtype(expected), np.dtype(expected))
    assert "DEQUANTIZE" not in ops_in(full.path)
    # The one rounding that differs is that of inputs exactly between two codes: LiteRT's QUANTIZE rounds them away from zero.
    np.testing.assert_array_equal(scores(full.path), scores(plain.path))


def test_a_node_in_float_is_named_and_refused(tmp_path: Path) -> None:
    model = quantized(net("e2 = Exp(f) m = Relu(e2)"), Precision.INT8)
    strict = ExportOptions(Precision.INT8, integer_io=IntegerIO.INT8)
    with pytest.raises(UnsupportedModel) as caught:
        EXPORTER.export(model, tmp_path / "m.tflite", strict)
    assert [(r.op_type, r.reason) for r in caught.value.refusals] == [("Exp", "it would compute in float32")]
    assert "--allow-float-islands" in str(caught.value)
    assert not (tmp_path / "m.tflite").exists()
    allowed = ExportOptions(Precision.INT8, integer_io=IntegerIO.INT8, float_islands=True)
    result = EXPORTER.export(model, tmp_path / "m.tflite", allowed)
    assert ports(result.path) == (np.int8, np.int8)
    assert any("1 node(s) compute in float32: Exp" in note for note in result.notes)


def test_an_output_in_float_is_named(tmp_path: Path) -> None:
    source = text(
        '<ir_version: 10, opset_import: ["": 21]> g (float[1,3,16,16] image) => (float[1,3,16,16] scores) { '
        "a = Relu(image) scores = Exp(a) }"
    )
    model = quantized(hub(source), Precision.INT8)
    refusals = EXPORTER.check(model, ExportOptions(Precision.INT8, integer_io=IntegerIO.INT8))
    assert {r.op_type for r in refusals} >= {"Exp", "output"}


def test_float_artifacts_ignore_it(tmp_path: Path) -> None:
    options = ExportOptions(Precision.FP32, integer_io=IntegerIO.INT8)
    assert ports(EXPORTER.export(net(), tmp_path / "m.tflite", options).path) == (np.float32, np.float32)
