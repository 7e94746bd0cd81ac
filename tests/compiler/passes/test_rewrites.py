"""Each rewrite: the operators after it, the numbers in onnxruntime before and after, a near miss, and idempotence."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.passes import clean_up, run_pipeline
from compiler.passes.serialize import from_bytes, to_bytes
from compiler.passes.simplify import InferShapes
from runtimes.onnxruntime_session import open_bytes

HEAD = '<ir_version: 10, opset_import: ["" : 21]> '
BN = "<float[2] g = {0.5, -1.5}, float[2] b = {0.1, 0.2}, float[2] m = {0.3, -0.4}, float[2] v = {0.9, 2.0}, "
CONV = "float[2, 1, 2, 2] w = {1, -2, 3, -4, 5, -6, 7, 8}, "
# (id, model, operators afterwards); where they equal the operators before, it is a near miss.
CASES = [
    (
        "minus infinity around a max pool",
        "(float[1, 1, 4, 4] x) => (float[1, 1, 3, 3] y) <int64[8] p = {0, 0, 0, 1, 0, 0, 1, 0}, float low = {-3.4e38}>"
        "{ a = Pad(x, p, low)  y = MaxPool<kernel_shape = [3, 3], pads = [1, 0, 0, 1], strides = [2, 1]>(a) }",
        ["MaxPool"],
    ),
    (
        "zeros around a max pool",
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) <int64[8] p = {0, 0, 0, 1, 0, 0, 1, 0}, float low = {0}>"
        "{ a = Pad(x, p, low)  y = MaxPool<kernel_shape = [2, 2]>(a) }",
        ["Pad", "MaxPool"],
    ),
    (
        "a padded value that is read elsewhere",
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y, float[1, 1, 5, 5] a)"
        "<int64[8] p = {0, 0, 0, 1, 0, 0, 1, 0}, float low = {-3.4e38}>"
        "{ a = Pad(x, p, low)  y = MaxPool<kernel_shape = [2, 2]>(a) }",
        ["Pad", "MaxPool"],
    ),
    (
        "conv batch norm",
        f"(float[1, 1, 3, 3] x) => (float[1, 2, 2, 2] y) {BN}{CONV}float[2] c = {{1, 2}}>"
        "{ a = Conv(x, w, c)  y = BatchNormalization(a, g, b, m, v) }",
        ["Conv"],
    ),
    (
        "grouped conv-transpose batch norm",
        f"(float[1, 2, 2, 2] x) => (float[1, 2, 3, 3] y) {BN}{CONV[:-2]}>"
        "{ a = ConvTranspose<group = 2>(x, w)  y = BatchNormalization<epsilon = 0.01>(a, g, b, m, v) }",
        ["ConvTranspose"],
    ),
    (
        "gemm batch norm with alpha and beta",
        f"(float[3, 2] x) => (float[3, 2] y) {BN}float[2, 2] w = {{1, 2, 3, 4}}, float[2] c = {{1, 2}}>"
        "{ a = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, c)  y = BatchNormalization(a, g, b, m, v) }",
        ["Gemm"],
    ),
    (
        "batch norm whose input is read elsewhere",
        f"(float[1, 1, 3, 3] x) => (float[1, 2, 2, 2] y, float[1, 2, 2, 2] a) {BN}{CONV[:-2]}>"
        "{ a = Conv(x, w)  y = BatchNormalization(a, g, b, m, v) }",
        ["Conv", "BatchNormalization"],
    ),
    (
        "matmul add mul sub div",
        "(float[3, 2] x) => (float[3, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}, float[1, 2] s = {3, -4}>"
        "{ a = MatMul(x, w)  c = Add(b, a)  d = Mul(c, s)  e = Sub(b, d)  f = Sub(e, s)  y = Div(f, s) }",
        ["Gemm"],
    ),
    (
        "matmul of rank 3",
        "(float[1, 3, 2] x) => (float[1, 3, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }",
        ["MatMul"],
    ),
    (
        "constant divided by a result",
        "(float[3, 2] x) => (float[3, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}>"
        "{ a = Gemm(x, w)  y = Div(b, a) }",
        ["Gemm", "Div"],
    ),
    (
        "a constant per row",
        "(float[3, 2] x) => (float[3, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[3, 1] b = {1, 2, 3}>"
        "{ a = Gemm(x, w)  y = Add(a, b) }",
        ["Gemm", "Add"],
    ),
    (
        "conv scaled along the width",
        f"(float[1, 1, 3, 3] x) => (float[1, 2, 2, 2] y) <{CONV}float[2] s = {{3, 4}}>"
        "{ a = Conv(x, w)  y = Mul(a, s) }",
        ["Conv", "Mul"],
    ),
    (
        "conv scaled per channel",
        f"(float[1, 1, 3, 3] x) => (float[1, 2, 2, 2] y) <{CONV}float[2, 1, 1] s = {{3, 4}}>"
        "{ a = Conv(x, w)  y = Mul(a, s) }",
        ["Conv"],
    ),
    (
        "hard swish",
        "(float[4] x) => (float[4] y) { a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)  y = Mul(x, a) }",
        ["HardSwish"],
    ),
    (
        "hard swish with another slope",
        "(float[4] x) => (float[4] y) { a = HardSigmoid<alpha = 0.2, beta = 0.5>(x)  y = Mul(x, a) }",
        ["HardSigmoid", "Mul"],
    ),
    ("swish", "(float[4] x) => (float[4] y) { a = Sigmoid(x)  y = Mul(x, a) }", ["Sigmoid", "Mul"]),
    (
        "relu6 as min of max",
        "(float[4] x) => (float[4] y) <float l = {0}, float[1] h = {6}> { a = Max(x, l)  y = Min(h, a) }",
        ["Clip"],
    ),
    ("clip from zero", "(float[4] x) => (float[4] y) <float l = {0}> { y = Clip(x, l) }", ["Relu"]),
    ("one bound", "(float[4] x) => (float[4] y) <float l = {0.1}> { y = Max(x, l) }", ["Max"]),
    (
        "mean over height and width",
        "(float[1, 2, 3, 3] x) => (float[1, 2, 1, 1] y) <int64[2] a = {-1, 2}> { y = ReduceMean(x, a) }",
        ["GlobalAveragePool"],
    ),
    (
        "mean without the axes",
        "(float[1, 2, 3, 3] x) => (float[1, 2] y) <int64[2] a = {2, 3}> { y = ReduceMean<keepdims = 0>(x, a) }",
        ["GlobalAveragePool", "Reshape"],
    ),
    (
        "mean over channels",
        "(float[1, 2, 3, 3] x) => (float[1, 1, 1, 3] y) <int64[2] a = {1, 2}> { y = ReduceMean(x, a) }",
        ["ReduceMean"],
    ),
    (
        "average pool of everything",
        "(float[1, 2, 3, 3] x) => (float[1, 2, 1, 1] y) { y = AveragePool<kernel_shape = [3, 3]>(x) }",
        ["GlobalAveragePool"],
    ),
    (
        "average pool with padding",
        "(float[1, 2, 3, 3] x) => (float[1, 2, 2, 2] y) { y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 0, 0]>(x) }",
        ["AveragePool"],
    ),
    (
        "flatten, unsqueeze, squeeze",
        "(float[1, 2, 3] x) => (float[6, 1] y) <int64[1] a = {2}, int64[1] z = {0}>"
        "{ b = Flatten(x)  c = Unsqueeze(b, a)  y = Squeeze(c, z) }",
        ["Reshape"],
    ),
    (
        "transposes that cancel",
        "(float[1, 2, 3] x) => (float[1, 2, 3] y)"
        "{ a = Transpose<perm = [0, 2, 1]>(x)  b = Transpose<perm = [0, 2, 1]>(a)  y = Relu(b) }",
        ["Relu"],
    ),
    (
        "transposes that merge",
        "(float[2, 3, 4] x) => (float[4, 2, 3] y) { a = Transpose<perm = [0, 2, 1]>(x)  y = Transpose<perm = [1, 0, 2]>(a) }",
        ["Transpose"],
    ),
    (
        "identity and dropout",
        "(float[4] x) => (float[4] y) { a = Identity(x)  b = Relu(a)  c = Dropout(b)  d = Abs(c)  y = Identity(d) }",
        ["Relu", "Abs"],
    ),
]


def _model(text: str) -> ir.Model:
    return InferShapes()(from_bytes(onnx.parser.parse_model(f"{HEAD} g {text}").SerializeToString())).model


def _rewritten(model: ir.Model) -> ir.Model:
    """Our rewrites alone: onnxsim does some of the same, and would hide a rewrite that does nothing."""
    copy = from_bytes(to_bytes(model))
    for _ in range(20):
        copy, modified = run_pipeline("rewrite", copy)
        if not modified:
            return copy
    raise AssertionError("the rewrites do not settle")


@pytest.mark.parametrize(("text", "operators"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
@pytest.mark.parametrize("through", [_rewritten, clean_up], ids=["rewrites", "clean_up"])
def test_rewrite(text: str, operators: list[str], through: object) -> None:
    model = _model(text)
    result = through(model)  # type: ignore[operator]
    assert [node.op_type for node in result.graph] == operators
    generator = np.random.default_rng(0)
    with open_bytes(to_bytes(model)) as before, open_bytes(to_bytes(result)) as after:
        assert before.outputs == after.outputs
        feeds = {s.name: generator.standard_normal(s.shape).astype(np.float32) * 4 for s in before.inputs}
        want, got = before.run(feeds), after.run(feeds)
    for name, expected in want.items():
        # A handful of float32 roundings (2^-24 each) of numbers up to the largest intermediate, some tens of the output.
        np.testing.assert_allclose(got[name], expected, rtol=2e-5, atol=2.0**-20 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("text", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_a_second_run_changes_nothing_and_the_input_is_untouched(text: str) -> None:
    model = _model(text)
    before = to_bytes(model)
    once = clean_up(model)
    assert to_bytes(model) == before
    assert to_bytes(clean_up(once)) == to_bytes(once) == to_bytes(clean_up(model))


def test_shared_weights_are_untied_and_everything_has_a_name() -> None:
    text = """(float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
    { a = Gemm(x, w)  b = Relu(a)  y = Gemm(b, w) }"""
    graph = clean_up(_model(text)).graph
    weights = [node.inputs[1] for node in graph if node.op_type == "Gemm"]
    assert len({id(w) for w in weights}) == 2
    names = [node.name for node in graph]
    assert len(set(names)) == len(names)
    assert all(names)


def test_another_opset_is_our_own_mistake() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Abs(x) }'
    )
    with pytest.raises(ValueError, match="opset 21"):
        clean_up(ir.from_proto(model))
