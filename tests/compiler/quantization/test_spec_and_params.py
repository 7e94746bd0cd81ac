"""Numbers and their record: rounding within half a step, agreement with onnxruntime, canonical JSON without losing a bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.errors import DataError
from compiler.hub_session import open_hub
from compiler.quantization.params import BIAS_LIMIT, activation_params, bias_params, make_room_for_bias, weight_params
from compiler.quantization.spec import (
    ConstantQuant,
    Conversion,
    Granularity,
    NodeDecision,
    NodePrecision,
    QParams,
    QuantizationSpec,
    Role,
    Scheme,
    read_spec,
)
from profiles.errors import RegistryMiss
from runtimes.session import Array
from tests.compiler.hub_models import hub

ENDS = st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)
WEIGHTS = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(-8, 8, width=32))


@settings(max_examples=200, deadline=None)
@given(ENDS, ENDS, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_round_trip_is_within_half_a_step_inside_the_range(one: float, other: float, shares: list[float]) -> None:
    params = activation_params(min(one, other), max(one, other))
    values = np.array([params.low + share * (params.high - params.low) for share in shares], np.float32)
    error = np.abs(params.dequantize(params.quantize(values)).astype(np.float64) - values)
    # Half a step, and float32's own rounding of quotients and products up to 256 steps.
    assert (error <= float(params.scale[0]) * (0.5 + 256 * 2.0**-22)).all()
    assert params.dequantize(params.quantize(np.zeros(1, np.float32)))[0] == 0.0


@settings(max_examples=100, deadline=None)
@given(ENDS, ENDS)
def test_the_range_asked_for_is_covered_to_half_a_step(one: float, other: float) -> None:
    low, high = min(one, other, 0.0), max(one, other, 0.0)
    params = activation_params(low, high)
    slack = float(params.scale[0]) * 0.501
    assert params.low <= low + slack and high - slack <= params.high


def test_after_relu_the_zero_point_is_the_lowest_code() -> None:
    for high in (1e-3, 0.7, 6.0, 1e6):
        assert activation_params(0.0, high).zero_point == -128
    assert activation_params(-3.0, 0.0).zero_point == 127
    assert activation_params(0.0, 0.0).zero_point == -128


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.sampled_from(["max-abs", "mse"]), st.sampled_from([None, 0, 1]))
def test_weights_are_symmetric_narrow_and_close(weight: Array, method: str, axis: int | None) -> None:
    params = weight_params(weight, axis, method)
    assert params.zero_point == 0 and len(params.scale) == (1 if axis is None else weight.shape[axis])
    codes = params.quantize(weight)
    assert codes.min() >= -127
    plain = weight_params(weight, axis)
    errors = [float(((p.dequantize(p.quantize(weight)) - weight) ** 2).sum()) for p in (params, plain)]
    assert errors[0] <= errors[1] * (1 + 1e-5) + 1e-12
    steps = np.broadcast_to(plain.dequantize(np.ones(weight.shape, np.int8)), weight.shape)
    assert (np.abs(plain.dequantize(plain.quantize(weight)) - weight) <= steps * 0.5001).all()


def test_mse_weights_gain_on_an_outlier() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 400)).astype(np.float32)
    weight[2, 0] = 9.0
    errors = []
    for method in ("max-abs", "mse"):
        params = weight_params(weight, 0, method)
        errors.append(float(((params.dequantize(params.quantize(weight)) - weight)[2] ** 2).sum()))
    assert errors[1] < errors[0]
    with pytest.raises(RegistryMiss, match="guess"):
        weight_params(weight, 0, "guess")


def test_dead_channels_keep_usable_scales() -> None:
    weight = np.array([[0.0, 0.0], [1.0, -2.0], [1e-30, 0.0]], np.float32)
    params = weight_params(weight, 0)
    assert params.scale[0] == params.scale[1] == np.float32(2 / 127)
    assert params.scale[2] >= np.float32(2 / 127) * np.float32(2.0**-25)
    assert np.isfinite(bias_params(1e-20, params).scale).all()


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, 3, elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    st.floats(1e-6, 10),
    hnp.arrays(np.float32, 3, elements=st.floats(2.0**-40, 10, width=32)),
)
def test_biases_always_fit(bias: Array, scale_in: float, scales: Array) -> None:
    params, raised = make_room_for_bias(bias, scale_in, QParams("int8", scales, axis=0, narrow=True))
    codes = bias_params(scale_in, params).quantize(bias).astype(np.float64)
    assert np.abs(codes).max() <= BIAS_LIMIT * (1 + 2.0**-20)
    untouched = [c for c in range(3) if c not in raised]
    np.testing.assert_array_equal(params.scale[untouched], scales[untouched])
    assert (params.scale[raised] > scales[raised]).all()


def test_quantize_agrees_with_onnxruntime_bit_for_bit() -> None:
    model = hub(
        """
g (float[1, 4000] x) => (int8[1, 4000] q, float[1, 4000] d)
{
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
}
""",
        s=np.float32(0.0317),
        z=np.int8(-9),
    )
    params = QParams("int8", np.array([0.0317], np.float32), -9)
    rng = np.random.default_rng(0)
    ties = (np.arange(-150, 150) + 0.5).astype(np.float32) * np.float32(0.0317)
    x = np.concatenate([ties, rng.uniform(-6, 6, 3700)]).astype(np.float32)[np.newaxis]
    with open_hub(model) as session:
        found = session.run({"x": x})
    np.testing.assert_array_equal(params.quantize(x), found["q"])
    np.testing.assert_array_equal(params.dequantize(found["q"]), found["d"])


def example(scale: float = 0.1) -> QuantizationSpec:
    return QuantizationSpec(
        {"a": QParams("int8", np.array([scale], np.float32), 5)},
        (ConstantQuant("n", 1, Role.WEIGHT, QParams("int8", np.array([scale, 3.0], np.float32), axis=0, narrow=True)),),
        {
            "n": NodeDecision("Conv", NodePrecision.INT8, "because", "b"),
            "m": NodeDecision("Exp", NodePrecision.FLOAT32, "no"),
        },
        ("a note",),
        {"options": {"observer": "mse", "keep_float": ["x"]}},
    )


@settings(max_examples=100, deadline=None)
@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_spec_round_trip_keeps_every_bit(scale: float) -> None:
    spec = example(scale)
    data = spec.to_bytes()
    again = read_spec(data)
    assert again == spec and again.to_bytes() == data and again.sha256 == spec.sha256
    assert again.activations["a"].scale.tobytes() == np.array([scale], np.float32).tobytes()


def test_spec_reads_as_a_page_and_answers_questions() -> None:
    spec = example()
    text = str(spec)
    assert "1 of 2 nodes quantized" in text and "because" in text and "note: a note" in text
    assert list(spec.float_nodes) == ["m"]
    weight = spec.constant("n", 1)
    assert weight is not None and weight.granularity is Granularity.PER_CHANNEL and weight.scheme is Scheme.SYMMETRIC
    assert spec.constant("n", 2) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        example().to_bytes().replace(b"spec/1", b"spec/9"),
        example().to_bytes().replace(b'"zero_point":5', b'"zero_point":500'),
        example().to_bytes().replace(b'"weight"', b'"wait"'),
        b"[" * 100_000,
    ],
)
def test_a_damaged_spec_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_spec(data)


def test_impossible_parameters_are_our_mistake() -> None:
    for scale, zero_point, axis in (([0.0], 0, None), ([np.nan], 0, None), ([1.0], 200, None), ([1.0, 2.0], 0, None)):
        with pytest.raises(ValueError):
            QParams("int8", np.array(scale, np.float32), zero_point, axis)


@st.composite
def parameters(draw: st.DrawFn, axes: tuple[int | None, ...] = (None, 0, 1)) -> QParams:
    """Of every kind that a specification can hold; activations are quantized per tensor."""
    dtype = draw(st.sampled_from(["int4", "int8", "int16", "int32"]))
    axis = draw(st.sampled_from(axes))
    block = draw(st.sampled_from([None, 4])) if axis is not None and dtype == "int4" else None
    shape = (3, 2) if block else (1,) if axis is None else (draw(st.integers(1, 4)),)
    scale = draw(hnp.arrays(np.float32, shape, elements=st.floats(2.0**-100, 2.0**100, width=32)))
    narrow = draw(st.booleans())
    probe = QParams(dtype, scale, 0, axis, narrow, block)
    return QParams(dtype, scale, draw(st.integers(max(probe.qmin, -128), min(probe.qmax, 127))), axis, narrow, block)


NAMES = st.text(min_size=1, max_size=6)


@st.composite
def specs(draw: st.DrawFn) -> QuantizationSpec:
    decisions = st.builds(NodeDecision, NAMES, st.sampled_from(list(NodePrecision)), NAMES, st.none() | NAMES)
    constants = st.builds(ConstantQuant, NAMES, st.integers(0, 4), st.sampled_from(list(Role)), parameters())
    return QuantizationSpec(
        draw(st.dictionaries(NAMES, parameters(axes=(None,)), max_size=3)),
        tuple(draw(st.lists(constants, max_size=3))),
        draw(st.dictionaries(NAMES, decisions, max_size=3)),
        tuple(draw(st.lists(NAMES, max_size=2))),
        draw(st.dictionaries(NAMES, st.integers(0, 9) | st.booleans() | NAMES, max_size=2)),
        tuple(draw(st.lists(st.builds(Conversion, NAMES, NAMES, parameters(axes=(None,))), max_size=2))),
    )


@settings(max_examples=40, deadline=None)
@given(specs())
def test_any_specification_survives_a_round_trip(spec: QuantizationSpec) -> None:
    data = spec.to_bytes()
    again = read_spec(data)
    assert again == spec and again.to_bytes() == data
    assert sorted(str(again).splitlines()) == sorted(str(spec).splitlines())  # names come back sorted
