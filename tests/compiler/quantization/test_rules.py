"""The operator table at work: who shares a scale, whose scale is prescribed, and that onnxruntime gives the float answer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.hub_session import open_hub
from compiler.quantization.engine import Quantized, quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rules import RULES, Kind
from compiler.quantization.spec import NodePrecision, QParams, Role
from compiler.quantization.structure import analyse
from runtimes.session import Array, TensorSpec, run_dataset
from tests.compiler.hub_models import hub

RNG = np.random.default_rng(11)


def ramp(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def checked(model: ir.Model, *, least_db: float = 25.0, low: float = -2.0, high: float = 2.0) -> Quantized:
    """Quantize on random data, and hold the result against the float hub in onnxruntime."""
    specs = tuple(TensorSpec(v.name or "", "float32", tuple(int(d) for d in v.shape or ())) for v in model.graph.inputs)
    rng = np.random.default_rng(2)
    feeds = {s.name: rng.uniform(low, high, (48, *s.shape[1:])).astype(np.float32) for s in specs}
    result = quantize(
        model, make_dataset(feeds, specs, where="test"), QuantizeOptions(observer="min-max", split_outputs=False)
    )
    with open_hub(model) as plain, open_hub(result.model) as coded:
        want, have = run_dataset(plain, feeds), run_dataset(coded, feeds)
    for name, reference in want.items():
        noise = ((reference.astype(np.float64) - have[name]) ** 2).sum()
        assert 10 * np.log10((reference.astype(np.float64) ** 2).sum() / noise) > least_db, name
    return result


def test_pooling_and_movement_share_one_scale() -> None:
    model = hub(
        """
g (float[1, 2, 8, 8] x) => (float[1, 8] y)
<int64[2] shape = {1, 8}, int64[1] start = {0}, int64[1] end = {2}, int64[1] axis = {1}>
{
  c = Conv <kernel_shape = [1, 1]> (x, w)
  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
  a = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (m)
  t = Transpose <perm = [0, 2, 3, 1]> (a)
  r = Reshape(t, shape)
  k = Concat <axis = 1> (r, r)
  i = Identity(k)
  n, o = Split <axis = 1, num_outputs = 2> (i)
  y = Add(n, o)
}
""",
        w=ramp(2, 2, 1, 1),
    )
    spec = checked(model).spec
    shared = {spec.activations[name] for name in ("c", "m", "a", "t", "r", "k", "i", "n", "o")}
    assert len(shared) == 1
    assert spec.activations["x"] not in shared and spec.activations["y"] not in shared


def test_concat_covers_the_widest_of_its_inputs() -> None:
    model = hub("""
g (float[1, 4] x) => (float[1, 12] y)
<float hundred = {100.0}, float[1, 4] c = {-300.0, 0.0, 1.0, 2.0}>
{
  a = Mul(x, hundred)
  b = Add(x, x)
  y = Concat <axis = 1> (a, b, c)
}
""")
    spec = checked(model).spec
    assert spec.activations["a"] == spec.activations["b"] == spec.activations["y"]
    assert spec.activations["y"].low <= -299.0
    constants = {(one.index, one.role): one.params for one in spec.constants}
    assert constants[(2, Role.OPERAND)] == spec.activations["y"]


@pytest.mark.parametrize(
    ("op", "scale", "zero_point"), [("Softmax", 1 / 256, -128), ("Sigmoid", 1 / 256, -128), ("Tanh", 1 / 128, 0)]
)
def test_prescribed_outputs_pass_through_movement(op: str, scale: float, zero_point: int) -> None:
    model = hub(f"""
g (float[1, 2, 4] x) => (float[1, 8] y)
{{
  s = {op}(x)
  y = Flatten(s)
}}
""")
    spec = checked(model, least_db=20.0).spec
    prescribed = QParams("int8", np.array([scale], np.float32), zero_point)
    assert spec.activations["s"] == spec.activations["y"] == prescribed


def test_a_prescribed_scale_that_cannot_hold_the_others_is_requantized_and_noted() -> None:
    model = hub("""
g (float[1, 4] x) => (float[1, 8] y)
<float ten = {10.0}>
{
  s = Sigmoid(x)
  b = Mul(x, ten)
  y = Concat <axis = 1> (b, s)
}
""")
    spec = checked(model).spec
    assert spec.activations["s"].scale[0] == np.float32(1 / 256)
    assert spec.activations["b"] == spec.activations["y"] != spec.activations["s"]
    assert len(spec.notes) == 1 and "s is requantized" in spec.notes[0] and "exceeds" in spec.notes[0]


def test_a_global_mean_keeps_its_own_scale() -> None:
    model = hub("""
g (float[1, 3, 8, 8] x) => (float[1, 3, 1, 1] y)
{
  r = Relu(x)
  y = GlobalAveragePool(r)
}
""")
    spec = checked(model).spec
    assert spec.activations["y"].scale[0] < spec.activations["r"].scale[0]


@pytest.mark.parametrize(("transposed", "axis"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("bias_shape", [(5,), (1, 5), (1,)])
def test_gemm_weights_are_per_output_and_biases_become_vectors(
    transposed: int, axis: int, bias_shape: tuple[int, ...]
) -> None:
    weight = ramp(5, 6) if transposed else ramp(6, 5)
    text = f"g (float[1, 6] x) => (float[1, 5] y) {{ y = Gemm <transB = {transposed}> (x, w, b) }}"
    result = checked(hub(text, w=weight, b=ramp(*bias_shape)))
    weights, bias = (one.params for one in result.spec.constants)
    assert weights.axis == axis and len(weights.scale) == 5
    assert bias.axis == 0 and len(bias.scale) == 5
    codes = next(v for n, v in result.model.graph.initializers.items() if n.startswith("b/quantized"))
    assert list(codes.shape or ()) == [5]


@pytest.mark.parametrize("attribute", ["alpha = 0.5", "beta = 2.0", "transA = 1"])
def test_gemm_forms_without_a_kernel_stay_float(attribute: str) -> None:
    rows = 6 if "transA" in attribute else 1
    text = f"g (float[{rows}, 6] x) => (float y) {{ m = Gemm <{attribute}> (x, w, b)\n y = ReduceMean <keepdims = 0> (m) }}"
    decisions = analyse(hub(text, w=ramp(6, 5), b=ramp(5))).decisions
    reason = next(d.reason for d in decisions.values() if d.op_type == "Gemm")
    assert attribute.split()[0] in reason


def test_matmul_then_add_relu_without_gemm() -> None:
    model = hub(
        """
g (float[1, 6] x) => (float[1, 5] y)
{
  m = MatMul(x, w)
  a = Add(m, b)
  r = Relu(a)
  y = MatMul(r, v)
}
""",
        w=ramp(6, 5),
        b=ramp(5),
        v=ramp(5, 5),
    )
    spec = checked(model).spec
    by_node = {one.node: one.params for one in spec.constants if one.role is Role.WEIGHT}
    assert [params.axis for params in by_node.values()] == [1, 1]
    operand = next(one for one in spec.constants if one.role is Role.OPERAND)
    assert operand.params.axis is None and operand.params.dtype == "int8"
    assert "m" in spec.activations and "a" not in spec.activations
    assert spec.activations["r"].zero_point == -128


def test_matmul_of_two_activations_and_with_batched_or_left_constants() -> None:
    model = hub(
        """
g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
{
  t = Transpose <perm = [0, 1, 3, 2]> (x)
  s = MatMul(x, t)
  b = MatMul(s, w)
  y = MatMul(v, b)
}
""",
        w=ramp(2, 4, 4),
        v=ramp(4, 4),
    )
    spec = checked(model).spec
    assert [(one.index, one.params.axis, one.params.zero_point) for one in spec.constants] == [
        (1, None, 0),
        (0, None, 0),
    ]


@pytest.mark.parametrize(("group", "axis"), [(1, 1), (2, None)])
def test_transposed_convolution(group: int, axis: int | None) -> None:
    text = f"""
g (float[1, 4, 3, 3] x) => (float[1, 6, 6, 6] y)
{{ y = ConvTranspose <strides = [2, 2], kernel_shape = [2, 2], group = {group}> (x, w, b) }}
"""
    result = checked(hub(text, w=ramp(4, 6 // group, 2, 2), b=ramp(6)))
    weight, bias = (one.params for one in result.spec.constants)
    assert weight.axis == axis and bias.axis == (None if axis is None else 0)


def test_squeeze_and_excite_with_hard_activations() -> None:
    model = hub(
        """
g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y)
{
  d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 4> (x, w, b)
  h = HardSwish(d)
  p = GlobalAveragePool(h)
  c = Conv <kernel_shape = [1, 1]> (p, v)
  s = HardSigmoid <alpha = 0.1666666716337204, beta = 0.5> (c)
  y = Mul(h, s)
}
""",
        w=ramp(4, 1, 3, 3),
        b=ramp(4),
        v=ramp(4, 4, 1, 1),
    )
    spec = checked(model).spec
    assert not spec.float_nodes
    depthwise = next(one for one in spec.constants if one.node.startswith("Conv") and len(one.params.scale) == 4)
    assert depthwise.params.axis == 0


def test_movement_between_float_nodes_stays_float_and_non_zero_padding_is_refused() -> None:
    model = hub("""
g (float[1, 4] x) => (float[1, 8] y)
<int64[4] pads = {0, 2, 0, 2}, float one = {1.0}, int64[2] back = {1, 4}>
{
  e = Exp(x)
  r = Reshape(e, back)
  l = Log(r)
  p = Pad(l, pads, one)
  y = Abs(p)
}
""")
    reasons = {d.op_type: d.reason for d in analyse(model).decisions.values()}
    assert reasons["Reshape"] == "only moves data between float nodes"
    assert "something else than zero" in reasons["Pad"]


def test_an_unfolded_batch_norm_names_the_way_out() -> None:
    model = hub("""
g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y)
<float[2] s = {1.0, 2.0}, float[2] b = {0.0, 1.0}, float[2] m = {0.5, 0.5}, float[2] v = {1.0, 2.0}>
{ y = BatchNormalization(x, s, b, m, v) }
""")
    (decision,) = analyse(model).decisions.values()
    assert "clean-up pass" in decision.reason


def test_the_table_is_consistent() -> None:
    for op_type, rule in RULES.items():
        assert rule.source, op_type
        assert (rule.fixed is not None) == (rule.kind is Kind.FIXED), op_type
        assert not rule.moves_data or rule.kind is Kind.SAME_SCALE, op_type


def test_a_layer_normalisation_that_is_spelt_out_stays_in_float_as_a_whole() -> None:
    model = hub("""
g (float[1, 8, 16] x) => (float[1, 8, 16] y)
<int64[1] axes = {-1}, float two = {2.0}, float eps = {0.00001}, float half = {0.5}>
{
  r = Relu(x)
  m = ReduceMean(r, axes)
  d = Sub(r, m)
  q = Pow(d, two)
  v = ReduceMean(q, axes)
  e = Add(v, eps)
  s = Sqrt(e)
  n = Div(d, s)
  y = Mul(n, half)
}
""")
    decisions = analyse(model).decisions
    assert [d.op_type for d in decisions.values() if "layer normalisation" in d.reason] == [
        *("ReduceMean", "Sub", "Pow", "ReduceMean", "Div"),
    ]
    assert decisions["Relu_0"].precision is NodePrecision.INT8
    near_miss = hub(
        "g (float[1, 8] x) => (float[1, 8] y) <int64[1] axes = {-1}> { m = ReduceMean(x, axes)  y = Sub(x, m) }"
    )
    assert all(d.precision is NodePrecision.INT8 for d in analyse(near_miss).decisions.values())


def test_an_infinite_constant_keeps_its_node_in_float() -> None:
    """Magika's exported softmax takes the maximum with minus infinity."""
    least = np.array(-np.inf, np.float32)
    model = hub("g (float[1, 6] x) => (float[1, 6] y) { m = Max(x, least) y = Mul(m, m) }", least=least)
    found = analyse(model).decisions
    assert {d.op_type: d.precision for d in found.values()} == {
        "Max": NodePrecision.FLOAT32,
        "Mul": NodePrecision.INT8,
    }
