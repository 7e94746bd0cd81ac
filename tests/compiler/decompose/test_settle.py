"""Decompositions on models of their own, held against onnxruntime; the conformance suite has each operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.decompose import settle
from compiler.decompose.settle import decompose
from compiler.errors import Refusal
from compiler.passes.serialize import to_bytes
from runtimes.onnxruntime_session import open_bytes


@dataclass(frozen=True)
class _Attempt:
    model: ir.Model
    refusals: tuple[Refusal, ...]


def _attempt(supported: set[str]) -> object:
    def attempt(model: ir.Model) -> _Attempt:
        refused = [n for n in model.graph if n.op_type not in supported]
        return _Attempt(model, tuple(Refusal(str(n.name), n.op_type, "lacks it", "here") for n in refused))

    return attempt


def _model(text: str) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


LAYERS = """
<ir_version: 10, opset_import: ["": 21]>
g (float[2, 6, 8] x) => (float[2, 6, 8] y, float[2, 1, 8] m)
  <int64[1] axes = {1}, float[8] s = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] o = {0, 1, 0, 1, 0, 1, 0, 1}> {
  [norm] a = LayerNormalization <axis = -1, epsilon = 0.001> (x, s, o)
  [gelu] y = Gelu (a)
  [top] m = ReduceLogSumExp <keepdims = 1> (a, axes)
}
"""
PLAIN = {
    *("Add", "Sub", "Mul", "Div", "Sqrt", "ReduceMean", "ReduceMax", "ReduceSum", "Exp", "Log", "Abs", "Sign"),
    *("Where", "Less", "Min", "Max", "Reciprocal", "Neg", "Pow", "Clip"),
}


def test_refused_nodes_are_replaced_until_all_is_plain() -> None:
    model = _model(LAYERS)
    before = to_bytes(model)
    settled = settle(model, _attempt(PLAIN))  # type: ignore[type-var,arg-type]
    assert not settled.refusals
    assert {node.op_type for node in settled.model.graph} <= PLAIN
    assert to_bytes(model) == before, "the caller's model was changed"
    x = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    expected, actual = (open_bytes(to_bytes(m)).run({"x": x}) for m in (model, settled.model))
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=2e-5, atol=2e-6)


def test_names_stay_unique_and_tell_where_they_come_from() -> None:
    settled = settle(_model(LAYERS), _attempt(PLAIN))  # type: ignore[type-var,arg-type]
    names = [str(node.name) for node in settled.model.graph]
    assert len(set(names)) == len(names)
    assert all(name.split("/")[0] in ("norm", "gelu", "top") for name in names)


def test_what_does_not_decompose_is_refused_as_itself() -> None:
    settled = settle(_model(LAYERS), _attempt(PLAIN - {"Exp"}))  # type: ignore[type-var,arg-type]
    assert {refusal.node for refusal in settled.refusals} == {"norm", "gelu", "top"}


def test_a_result_that_is_constant_keeps_its_name() -> None:
    model = _model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[2, 3] x) => (float[2, 3] y, bool[2, 3] m) '
        "{ [drop] y, m = Dropout (x) }"
    )
    assert decompose(model, {"drop"}) == set()
    outputs = open_bytes(to_bytes(model)).run({"x": np.ones((2, 3), np.float32)})
    assert outputs["m"].all() and outputs["y"].tolist() == np.ones((2, 3)).tolist()


RECURRENT = """
<ir_version: 10, opset_import: ["": 21]>
g (float[5, 2, 3] x) => (float[5, 2, 2, 4] y, float[2, 2, 4] h) {{
  [cell] y, h = {op} <hidden_size = 4, direction = "bidirectional"{more}> (x, w, r, b)
}}
"""


@pytest.mark.parametrize(
    ("op", "gates", "more"),
    [("LSTM", 4, ""), ("GRU", 3, ""), ("GRU", 3, ", linear_before_reset = 1"), ("RNN", 1, "")],
)
def test_recurrent_operators_unroll_in_both_directions(op: str, gates: int, more: str) -> None:
    rng = np.random.default_rng(1)
    proto = onnx.parser.parse_model(RECURRENT.format(op=op, more=more))
    for name, shape in (("w", (2, gates * 4, 3)), ("r", (2, gates * 4, 4)), ("b", (2, gates * 8))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    expected = open_bytes(to_bytes(model)).run({"x": x})
    assert decompose(model, {"cell"}) == set()
    assert op not in {node.op_type for node in model.graph}
    actual = open_bytes(to_bytes(model)).run({"x": x})
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", ["Erf", "Atan", "Asin", "Acos", "Sinh", "Asinh", "Atanh", "Softplus", "Mish"])
def test_functions_are_exact_to_a_few_units_of_float32(function: str) -> None:
    text = f'<ir_version: 10, opset_import: ["": 21]> g (float[4001] x) => (float[4001] y) {{ [f] y = {function} (x) }}'
    reach = 0.999 if function in ("Asin", "Acos", "Atanh") else 6.0
    x = np.linspace(-reach, reach, 4001).astype(np.float32)
    model = _model(text)
    expected = open_bytes(to_bytes(model)).run({"x": x})["y"]
    assert decompose(model, {"f"}) == set()
    actual = open_bytes(to_bytes(model)).run({"x": x})["y"]
    np.testing.assert_allclose(actual, expected, rtol=3e-6, atol=4e-7)


@pytest.mark.parametrize(("op", "gates", "more"), [("LSTM", 4, ", clip = 0.5"), ("GRU", 3, ""), ("RNN", 1, "")])
def test_many_steps_stand_in_a_loop(op: str, gates: int, more: str) -> None:
    """75 steps: four rounds of sixteen, and eleven before them."""
    rng = np.random.default_rng(1)
    text = RECURRENT.format(op=op, more=more).replace("float[5,", "float[75,")
    proto = onnx.parser.parse_model(text)
    for name, shape in (("w", (2, gates * 4, 3)), ("r", (2, gates * 4, 4)), ("b", (2, gates * 8))):
        array = (rng.standard_normal(shape) * 0.3).astype(np.float32)  # so that no error grows
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    x = rng.standard_normal((75, 2, 3)).astype(np.float32)
    expected = open_bytes(to_bytes(model)).run({"x": x})
    assert decompose(model, {"cell"}) == set()
    assert [node.op_type for node in model.graph].count("Loop") == 2 and model.graph.num_nodes() < 900
    actual = open_bytes(to_bytes(model)).run({"x": x})
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-6)
