"""What perform writes, read back from serialised bytes: the contract of compiler/hub.py and exactly the spec's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from compiler.calibration.dataset import make_dataset
from compiler.errors import DataError
from compiler.hub_session import open_hub
from compiler.quantization.engine import Quantized, quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.spec import Role
from compiler.quantization.structure import analyse
from compiler.quantization.unsigned import to_uint8
from runtimes.onnxruntime_session import open_bytes
from runtimes.session import Array, TensorSpec
from tests.compiler.hub_models import hub, kernels

RNG = np.random.default_rng(7)
WEIGHT = RNG.normal(size=(3, 2, 3, 3)).astype(np.float32)
BIAS = RNG.normal(size=3).astype(np.float32)


def quantized(
    model: ir.Model, options: QuantizeOptions | None = None, low: float = -2.0, high: float = 2.0
) -> Quantized:
    value = model.graph.inputs[0]
    shape = tuple(int(d) for d in value.shape or ())
    rng = np.random.default_rng(3)
    samples = rng.uniform(low, high, (64, *shape[1:])).astype(np.float32)
    spec = TensorSpec(value.name or "", "float32", shape)
    return quantize(model, make_dataset({spec.name: samples}, (spec,), where="test"), options)


def conv_net(relu: str = "r = Relu(c)", weight: Array = WEIGHT, bias: Array = BIAS) -> ir.Model:
    text = f"""
g (float[1, 2, 5, 5] x) => (float[1, 3, 5, 5] y)
<float zero = {{0.0}}, float six = {{6.0}}, float one = {{1.0}}>
{{
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  {relu}
  y = Mul(r, r)
}}
"""
    return hub(text, w=weight, b=bias)


def reread(model: ir.Model) -> onnx.ModelProto:
    proto = onnx.ModelProto.FromString(ir.to_proto(model).SerializeToString())
    onnx.checker.check_model(proto, full_check=True)
    return proto


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_conv_relu_has_one_pair_behind_the_relu() -> None:
    proto = reread(quantized(conv_net()).model)
    producers = {node.output[0]: node for node in proto.graph.node}
    conv = next(n for n in proto.graph.node if n.op_type == "Conv")
    assert [producers[name].op_type for name in conv.input] == ["DequantizeLinear"] * 3
    relu = next(n for n in proto.graph.node if n.op_type == "Relu")
    assert relu.input[0] == conv.output[0]
    quantizer = next(n for n in proto.graph.node if relu.output[0] in n.input)
    assert quantizer.op_type == "QuantizeLinear"
    assert ops(proto).count("QuantizeLinear") == 3  # x, r, y


def test_clip_0_6_fuses_and_other_clips_do_not() -> None:
    fused = quantized(conv_net("r = Clip(c, zero, six)"))
    assert [d.fused_into for d in fused.spec.nodes.values() if d.op_type == "Conv"] == ["r"]
    assert fused.spec.activations["r"].zero_point == -128
    near_miss = quantized(conv_net("r = Clip(c, zero, one)"))
    assert [d.fused_into for d in near_miss.spec.nodes.values() if d.op_type == "Conv"] == [None]
    assert "c" in near_miss.spec.activations


def test_a_convolution_read_twice_keeps_its_pair() -> None:
    model = hub("""
g (float[1, 2, 5, 5] x) => (float[1, 2, 5, 5] y)
<float[2, 2, 1, 1] w = {0.5, -0.25, 1.0, 0.75}>
{
  c = Conv(x, w)
  r = Relu(c)
  y = Add(r, c)
}
""")
    assert "c" in quantized(model).spec.activations


def test_the_file_holds_exactly_the_specs_numbers() -> None:
    result = quantized(conv_net())
    proto = reread(result.model)
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    found = {n.output[0]: n for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    for name, params in result.spec.activations.items():
        node = found[f"{name}/dequantized" if name == "x" else name]
        scale, zero_point = constants[node.input[1]], constants[node.input[2]]
        assert scale.shape == () and scale.tobytes() == params.scale.tobytes()
        assert zero_point.dtype == np.int8 and int(zero_point) == params.zero_point
    conv = next(n for n in proto.graph.node if n.op_type == "Conv")
    sources = {Role.WEIGHT: WEIGHT, Role.BIAS: BIAS}
    assert [one.role for one in result.spec.constants] == [Role.WEIGHT, Role.BIAS]
    for one in result.spec.constants:
        node = found[conv.input[one.index]]
        assert constants[node.input[1]].tobytes() == one.params.scale.tobytes()
        assert not constants[node.input[2]].any()
        np.testing.assert_array_equal(constants[node.input[0]], one.params.quantize(sources[one.role]))
    assert "w" not in constants and "b" not in constants


def test_weights_and_bias_follow_the_specification() -> None:
    spec = quantized(conv_net()).spec
    weight, bias = (one.params for one in spec.constants)
    assert (weight.dtype, weight.axis, weight.zero_point, weight.qmin) == ("int8", 0, 0, -127)
    np.testing.assert_allclose(weight.scale, np.abs(WEIGHT).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    assert (bias.dtype, bias.axis, bias.zero_point) == ("int32", 0, 0)
    np.testing.assert_array_equal(bias.scale, spec.activations["x"].scale * weight.scale)


def test_inputs_and_outputs_stay_float_under_their_names() -> None:
    proto = reread(quantized(conv_net()).model)
    assert [(v.name, v.type.tensor_type.elem_type) for v in proto.graph.input] == [("x", onnx.TensorProto.FLOAT)]
    assert [(v.name, v.type.tensor_type.elem_type) for v in proto.graph.output] == [("y", onnx.TensorProto.FLOAT)]
    producer = next(n for n in proto.graph.node if "y" in n.output)
    assert producer.op_type == "DequantizeLinear"


def test_the_source_is_untouched_and_a_second_run_gives_the_same_bytes() -> None:
    model = conv_net()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    first, second = quantized(model), quantized(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert first.spec.to_bytes() == second.spec.to_bytes()
    assert ir.to_proto(first.model).SerializeToString() == ir.to_proto(second.model).SerializeToString()


def test_an_operator_without_rule_is_a_float_island_with_a_reason() -> None:
    model = hub("""
g (float[1, 8] x) => (float[1, 8] y)
<float[8] c = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}>
{
  a = Add(x, c)
  e = Exp(a)
  f = Log(e)
  y = Add(f, x)
}
""")
    result = quantized(model, low=-1.0, high=1.0)
    islands = result.spec.float_nodes
    assert sorted(d.op_type for d in islands.values()) == ["Exp", "Log"]
    assert all("no int8 rule" in d.reason for d in islands.values())
    proto = reread(result.model)
    exp = next(n for n in proto.graph.node if n.op_type == "Exp")
    log = next(n for n in proto.graph.node if n.op_type == "Log")
    assert log.input[0] == exp.output[0] and "e" not in result.spec.activations
    precision = {n.name: {p.key: p.value for p in n.metadata_props}["edgewright.precision"] for n in (exp, log)}
    assert set(precision.values()) == {"float32"}


def test_keep_float_leaves_the_convolution_and_its_activation() -> None:
    model = conv_net()
    name = next(n.name for n in model.graph if n.op_type == "Conv") or ""
    spec = quantized(model, QuantizeOptions(keep_float=(name,))).spec
    assert sorted(d.op_type for d in spec.float_nodes.values()) == ["Conv", "Relu"]
    assert not spec.constants and "x" not in spec.activations
    assert "r" in spec.activations  # its int8 consumer needs it


def test_keep_float_of_an_unknown_node_is_refused() -> None:
    with pytest.raises(DataError, match="nope"):
        quantized(conv_net(), QuantizeOptions(keep_float=("nope",)))


def test_a_bias_too_large_for_int32_raises_the_channels_weight_scale() -> None:
    huge = np.array([0.0, 5e7, 1.0], np.float32)
    small = WEIGHT.copy()
    small[1] *= 1e-6
    result = quantized(conv_net(weight=small, bias=huge))
    weight, bias = (one.params for one in result.spec.constants)
    assert any("1 of 3 channels" in note and "first: 1" in note for note in result.spec.notes)
    codes = bias.quantize(huge)
    assert np.abs(codes.astype(np.int64)).max() <= 2**30 + 2**10
    np.testing.assert_allclose(bias.dequantize(codes)[1], huge[1], rtol=1e-6)
    np.testing.assert_allclose(
        weight.scale[0], np.abs(small[0]).max() / 127, rtol=1e-6
    )  # its neighbours are left alone


def test_a_bias_shared_by_two_convolutions_is_quantized_for_each() -> None:
    model = hub("""
g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
<float[2, 2, 1, 1] w = {0.5, -0.25, 1.0, 0.75}, float[2, 2, 1, 1] v = {0.1, 0.2, -0.3, 0.4}, float[2] b = {0.3, -0.6}>
{
  a = Conv(x, w, b)
  y = Conv(a, v, b)
}
""")
    result = quantized(model)
    biases = [one.params for one in result.spec.constants if one.role is Role.BIAS]
    assert biases[0] != biases[1]
    proto = reread(result.model)
    convs = [n for n in proto.graph.node if n.op_type == "Conv"]
    assert convs[0].input[2] != convs[1].input[2]


def test_quantized_answers_stay_close_to_the_float_hub_in_onnxruntime() -> None:
    result = quantized(conv_net())
    x = np.random.default_rng(5).uniform(-2, 2, (1, 2, 5, 5)).astype(np.float32)
    with open_hub(conv_net()) as plain, open_hub(result.model) as coded:
        want, have = plain.run({"x": x})["y"], coded.run({"x": x})["y"]
    error = 10 * np.log10((want**2).sum() / ((want - have) ** 2).sum())
    assert error > 25.0


@pytest.mark.parametrize("activation", ["r = Relu(c)", "r = Clip(c, zero, six)"])
@pytest.mark.parametrize("high", [0.5, 50.0])
def test_onnxruntime_fuses_the_activation_into_an_integer_kernel(tmp_path: Path, activation: str, high: float) -> None:
    """Also where the range ends exactly at 6: rounding of the scale must not push it past the limit."""
    coded = quantized(conv_net(activation), QuantizeOptions(observer="min-max"), low=-high, high=high).model
    for found in (kernels(coded, tmp_path, int8=True), kernels(to_uint8(coded), tmp_path, int8=False)):
        assert found["QLinearConv"] == found["QLinearMul"] == 1
        assert not {"Conv", "Relu", "Clip"} & set(found), found


def test_uint8_changes_the_codes_and_not_the_numbers(tmp_path: Path) -> None:
    text = "g (float[1, 4] x) => (float[1, 4] y) { a = Add(x, c)\n y = MatMul(a, w) }"
    weight = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    coded = quantized(hub(text, c=np.array([1, -2, 3, 0.5], np.float32), w=weight)).model
    before = ir.to_proto(coded).SerializeToString()
    unsigned = to_uint8(coded)
    assert ir.to_proto(coded).SerializeToString() == before
    types = {t.name: t.data_type for t in reread(unsigned).graph.initializer}
    assert types["c/quantized"] == types["a/zero_point"] == onnx.TensorProto.UINT8
    assert types["w/quantized"] == types["w/zero_point"] == onnx.TensorProto.INT8
    x = np.random.default_rng(5).uniform(-2, 2, (1, 4)).astype(np.float32)
    with open_hub(coded) as one, open_hub(unsigned) as other:
        np.testing.assert_array_equal(one.run({"x": x})["y"], other.run({"x": x})["y"])
    assert not {"Add", "MatMul"} & set(kernels(unsigned, tmp_path, int8=False))


def test_uint8_gives_weights_that_share_a_zero_point_one_each(caplog: pytest.LogCaptureFixture) -> None:
    """Equal constants are merged in files of others; onnxruntime's exact mode does not load a shared int8 initializer."""
    text = "g (float[1, 4] x) => (float[1, 4] y) { a = MatMul(x, v)\n y = MatMul(a, w) }"
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(size=(4, 4)).astype(np.float32) for name in "vw"}
    coded = quantized(hub(text, **weights)).model
    shared = coded.graph.initializers["v/zero_point"]
    for usage in list(coded.graph.initializers["w/zero_point"].uses()):
        usage.node.replace_input_with(usage.idx, shared)
    proto = reread(to_uint8(coded))
    pairs = {n.input[0]: n.input[2] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    assert pairs["v/quantized"] != pairs["w/quantized"]
    with open_bytes(proto.SerializeToString()) as session:
        assert np.isfinite(session.run({"x": np.ones((1, 4), np.float32)})["y"]).all()
    assert not caplog.records


def test_an_output_that_is_also_read_keeps_its_name_and_its_pair() -> None:
    model = hub("""
g (float[1, 4] x) => (float[1, 4] a, float[1, 4] y)
{
  a = Add(x, x)
  y = Relu(a)
}
""")
    result = quantized(model)
    proto = reread(result.model)
    assert [v.name for v in proto.graph.output] == ["a", "y"]
    assert result.spec.activations["a"] != result.spec.activations["y"]  # an output is no inside of a fusion
    relu = next(n for n in proto.graph.node if n.op_type == "Relu")
    assert relu.input[0] == "a"


def test_values_read_inside_a_subgraph_are_left_whole() -> None:
    model = hub("""
g (float[1, 4] x, bool flag) => (float[1, 4] y)
{
  a = Flatten(x)
  y = If (flag) <
    then_branch = t () => (float[1, 4] p) { p = Exp(a) },
    else_branch = e () => (float[1, 4] q) { q = Neg(a) }
  >
}
""")
    decisions = analyse(model).decisions
    assert {d.op_type: str(d.precision) for d in decisions.values()} == {"Flatten": "float32", "If": "float32"}
