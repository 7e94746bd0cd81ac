"""What cannot be expressed is listed at once, each with node, operator, opset, shapes, reason and way out, in every precision."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from onnx import shape_inference

from compiler.errors import UnsupportedModel
from compiler.exporters.base import ExportOptions
from compiler.exporters.tflite import EXPORTER
from profiles.schema import IntegerIO, Precision
from tests.compiler.exporters.tflite.support import hub, text

pytest.importorskip("ai_edge_litert")

# Between the nodes that nobody can express lie ones that can, whose input comes from a refused node.
NET = """<ir_version: 10, opset_import: ["": 21, "com.example": 1]> g (float[1,3,4,4] x) => (float[1,3,4,4] y) %s {
  %s
  a = com.example.Secret(x1)
  b = Relu(a)
  c = com.example.Other(b)
  y = Add(c, b)
}"""
QUANTIZED = (
    "<float s = {0.1}, int8 z = {0}>",
    "q = QuantizeLinear(x, s, z) x1 = DequantizeLinear(q, s, z)",
)


def net(*, quantized: bool) -> ir.Model:
    parts = QUANTIZED if quantized else ("", "x1 = Neg(x)")
    proto = text(NET % parts)
    for name in ("a", "b", "c", "x1"):
        info = proto.graph.value_info.add()
        info.name = name
        info.type.CopyFrom(proto.graph.input[0].type)
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}_{node.op_type}"
    return ir.from_proto(shape_inference.infer_shapes(proto))


@pytest.mark.parametrize("precision", (*Precision,))
def test_all_refusals_come_at_once_with_all_that_is_known(tmp_path: Path, precision: Precision) -> None:
    model = net(quantized=precision.needs_data)
    with pytest.raises(UnsupportedModel) as caught:
        EXPORTER.export(model, tmp_path / "m.tflite", ExportOptions(precision))
    refusals = caught.value.refusals
    assert [r.op_type for r in refusals] == ["Secret", "Other"]
    assert EXPORTER.check(model, ExportOptions(precision)) == list(refusals)
    for refusal in refusals:
        assert "_" + refusal.op_type in refusal.node
        assert refusal.reason == "the domain 'com.example' is not ONNX's own"
        assert refusal.signature == "com.example 1, FLOAT[1,3,4,4] -> FLOAT[1,3,4,4]"
        assert refusal.remedy
        assert all(
            part in str(caught.value) for part in (refusal.node, refusal.signature, refusal.reason, refusal.remedy)
        )
    assert not list(tmp_path.iterdir())


def test_float_islands_are_listed_with_their_shapes() -> None:
    source = text(
        '<ir_version: 10, opset_import: ["": 21]> g (float[1,4] x) => (float[1,4] y) <float s = {0.1}, int8 z = {0}> { '
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = Exp(d) f = Sin(e) "
        "p = QuantizeLinear(f, s, z) y = DequantizeLinear(p, s, z) }"
    )
    refusals = EXPORTER.check(hub(source), ExportOptions(Precision.INT8, integer_io=IntegerIO.INT8))
    assert [(r.op_type, r.signature) for r in refusals] == [
        ("Exp", "opset 21, FLOAT[1,4] -> FLOAT[1,4]"),
        ("Sin", "opset 21, FLOAT[1,4] -> FLOAT[1,4]"),
    ]


def test_a_size_that_is_not_known_is_named() -> None:
    model = hub(text('<ir_version: 10, opset_import: ["": 21]> g (float[1,4] x) => (float[1,4] y) { y = Exp(x) }'))
    model.graph.inputs[0].shape = ir.Shape([1, "n"])
    refusals = EXPORTER.check(model, ExportOptions(Precision.FP32))
    assert "not static" in refusals[0].reason
    assert refusals[0].remedy
