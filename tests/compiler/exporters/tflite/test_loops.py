"""Loops whose number of steps is known at run time alone, in LiteRT against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.errors import UnsupportedModel
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from profiles.schema import Precision
from tests.compiler.exporters.tflite import support

pytest.importorskip("ai_edge_litert")

# The body reads a constant, a computed value that an activation of the body follows, and the step's number.
COUNTED = """
<ir_version: 10, opset_import: ["": 21]>
g (int64 n, float[1, 4] x) => (float[1, 4] y)
  <float[4, 4] w = {0.5, -0.2, 0.1, 0.3, 0.4, 0.2, -0.6, 0.1, 0.3, 0.3, 0.2, -0.5, -0.1, 0.7, 0.2, 0.4}> {
  [outer] o = MatMul (x, w)
  [loop] y = Loop (n, , x) <body = b (int64 i, bool go, float[1, 4] s) => (bool more, float[1, 4] t) {
    [same] more = Identity (go)
    [relu] r = Relu (o)
    [product] p = MatMul (s, w)
    [number] f = Cast <to = 1> (i)
    [sum] q = Add (p, r)
    [late] u = Add (q, f)
    [tanh] t = Tanh (u)
  }>
}
"""
# Doubles until the sum passes the bound; two states change places at each step.
UNTIL = """
<ir_version: 10, opset_import: ["": 21]>
g (float[3] x, float bound, bool start) => (float[3] a, float[3] b) {
  [loop] a, b = Loop (, start, x, x) <body = step (int64 i, bool go, float[3] s, float[3] t)
    => (bool more, float[3] u, float[3] s) {
    [first] axes = Constant <value_ints = [0]> ()
    [double] u = Add (t, t)
    [total] z = ReduceSum <keepdims = 0> (u, axes)
    [compare] more = Less (z, bound)
  }>
}
"""
SWAP = """
<ir_version: 10, opset_import: ["": 21]>
g (int64 n, float[2] x, float[2] z) => (float[2] a, float[2] b) {
  [loop] a, b = Loop (n, , x, z) <body = step (int64 i, bool go, float[2] s, float[2] t) => (bool go, float[2] t, float[2] s) { }>
}
"""
NESTED = """
<ir_version: 10, opset_import: ["": 21]>
g (int64 n, float[2] x) => (float[2] y) <float[2] one = {1, 2}> {
  [loop] y = Loop (n, , x) <body = b (int64 i, bool go, float[2] s) => (bool go, float[2] t) {
    [inner] t = Loop (i, , s) <body = c (int64 j, bool on, float[2] p) => (bool on, float[2] q) {
      [grow] h = Add (p, one)
      [add] q = Add (h, x)
    }>
  }>
}
"""


def _file(text: str, tmp_path: Path, precision: Precision = Precision.FP32) -> Path:
    support.export(to_hub(onnx.parser.parse_model(text), ImportOptions(batch=1)), tmp_path / "m.tflite", precision)
    return tmp_path / "m.tflite"


def _same(text: str, path: Path, feeds: dict[str, support.Array], atol: float = 1e-6) -> None:
    want, got = support.reference(onnx.parser.parse_model(text), feeds), support.run(path, feeds)
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=atol)


@pytest.mark.parametrize(("precision", "atol"), [(Precision.FP32, 1e-6), (Precision.FP16, 2e-3)])
def test_the_number_of_steps_is_an_input(tmp_path: Path, precision: Precision, atol: float) -> None:
    path = _file(COUNTED, tmp_path, precision)
    x = np.asarray([[0.3, -1.2, 0.8, 2.0]], np.float32)
    for steps in (0, 1, 7, 900, -1):
        _same(COUNTED, path, {"n": np.asarray(steps, np.int64), "x": x}, atol)


def test_a_condition_ends_the_loop(tmp_path: Path) -> None:
    path = _file(UNTIL, tmp_path)
    for bound, start in ((10.0, True), (5000.0, True), (5000.0, False), (-1.0, True)):
        x = np.asarray([1, 0.5, 2], np.float32)
        _same(UNTIL, path, {"x": x, "bound": np.asarray(bound, np.float32), "start": np.asarray(start)})


@pytest.mark.parametrize("text", [SWAP, NESTED])
def test_states_change_places_and_loops_stand_in_loops(tmp_path: Path, text: str) -> None:
    path = _file(text, tmp_path)
    for steps in (0, 1, 2, 5):
        feeds: dict[str, support.Array] = {"n": np.asarray(steps, np.int64), "x": np.asarray([1, 2], np.float32)}
        if text is SWAP:
            feeds["z"] = np.asarray([3, 4], np.float32)
        _same(text, path, feeds)


def test_one_buffer_for_a_constant_of_several_graphs(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as fb

    content = _file(COUNTED, tmp_path).read_bytes()
    model = fb.ModelT.InitFromPackedBuf(content, 0)
    weights = [b for b in model.buffers if b.data is not None and len(b.data) == 64]
    assert len(model.subgraphs) == 3 and len(weights) == 1


def test_a_body_without_a_form_is_named_with_its_node(tmp_path: Path) -> None:
    text = SWAP.replace("float[2] t, float[2] s) { }", "float[2] t, float[2] k) { [odd] k = Bernoulli (s) }")
    assert text != SWAP
    with pytest.raises(UnsupportedModel, match="in the body of 'loop': ") as caught:
        _file(text, tmp_path)
    assert [(r.node, r.op_type) for r in caught.value.refusals] == [("odd", "Bernoulli")]


# The body's operators have no builtin of their own: Celu is a function of the standard, LpNormalization one of ours.
DECOMPOSED = """
<ir_version: 10, opset_import: ["": 21]>
g (int64 n, float[1, 4] x) => (float[1, 4] y) {
  [loop] y = Loop (n, , x) <body = b (int64 i, bool go, float[1, 4] s) => (bool go, float[1, 4] t) {
    [celu] c = Celu <alpha = 0.5> (s)
    [norm] l = LpNormalization <axis = 1, p = 2> (c)
    [add] t = Add (l, x)
  }>
}
"""


def test_a_body_is_decomposed_like_the_graph(tmp_path: Path) -> None:
    path = _file(DECOMPOSED, tmp_path)
    x = np.asarray([[0.3, -1.2, 0.8, 2.0]], np.float32)
    for steps in (0, 1, 5):
        _same(DECOMPOSED, path, {"n": np.asarray(steps, np.int64), "x": x})


# More steps than are written out, known beforehand: what they give is collected.
COLLECTED = """
<ir_version: 10, opset_import: ["": 21]>
g (float[2, 3] x) => (float[2, 3] y, float[600, 2, 3] all, float[2, 3] z) <int64 n = {600}, float half = {0.5}> {
  [loop] y, all = Loop (n, , x) <body = b (int64 i, bool go, float[2, 3] s)
    => (bool go, float[2, 3] t, float[2, 3] u) {
    [number] f = Cast <to = 1> (i)
    [shrink] h = Mul (s, half)
    [add] t = Add (h, f)
    [sine] u = Sin (t)
  }>
  [after] z = Tanh (y)
}
"""


def test_what_a_known_number_of_steps_gives_is_collected(tmp_path: Path) -> None:
    path = _file(COLLECTED, tmp_path)
    assert "WHILE" in support.ops_in(path) and path.stat().st_size < 600 * 6 * 4
    _same(COLLECTED, path, {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}, atol=1e-4)


def test_what_an_unknown_number_of_steps_gives_is_refused(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (int64 n, float[2] x) => (float[2] y, float[5, 2] all) {
      [loop] y, all = Loop (n, , x) <body = b (int64 i, bool go, float[2] s) => (bool go, float[2] t, float[2] u) {
        [t] t = Sin (s)
        [u] u = Cos (s)
      }>
    }
    """
    with pytest.raises(UnsupportedModel, match="depends on data") as caught:
        _file(text, tmp_path)
    assert [(r.node, r.op_type) for r in caught.value.refusals] == [("loop", "Loop")]
