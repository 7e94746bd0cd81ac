"""Rungs that rewrite the float model: the function stays, what int8 finds hard goes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.hub_session import open_hub
from compiler.hubfacts import hub_inputs
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.absorb import absorbed
from compiler.quantization.rescue.candidate import candidate, make_bench
from compiler.quantization.rescue.equalise import equalise_layers, find_pairs
from compiler.quantization.rescue.heads import split_heads, stretches
from compiler.quantization.spec import NodePrecision
from runtimes.session import Array, run_dataset
from tests.compiler.hub_models import hub

CHAIN = """
net (float[1, 3, 6, 6] image) => (float[1, 4, HEIGHT, HEIGHT] y) {
  a = Conv (image, w1, b1)
  r = ACTIVATION
  y = Conv SECOND (r, w2)
}
"""
ACTIVATIONS = {"relu": "Relu (a)", "relu6": "Clip (a, low, high)", "hardswish": "HardSwish (a)"}


def chain(activation: str = "relu", second: str = "", offset: float = 4.0) -> ir.Model:
    """The first four channels of eight lie ``offset`` above zero, for any input."""
    rng = np.random.default_rng(0)
    bias = np.where(np.arange(8) < 4, offset, 0.0) + 0.1 * rng.standard_normal(8)
    arrays = {"w1": rng.uniform(-0.2, 0.2, (8, 3, 1, 1)), "b1": bias, "w2": rng.standard_normal((4, 8, 3, 3)) * 0.3}
    if activation == "relu6":
        arrays |= {"low": np.array(0.0), "high": np.array(6.0)}
    height = "6" if second else "4"
    text = CHAIN.replace("ACTIVATION", ACTIVATIONS[activation]).replace("SECOND", second).replace("HEIGHT", height)
    return hub(text, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})


def data(model: ir.Model, count: int = 64) -> Dataset:
    inputs = hub_inputs(model)
    shape = [size or 1 for size in inputs[0].shape[1:]]
    samples = np.random.default_rng(1).uniform(-1, 1, (count, *shape)).astype(np.float32)
    return make_dataset({inputs[0].name: samples}, inputs, where="test")


def values(model: ir.Model, samples: Dataset, name: str) -> Array:
    with open_hub(model, taps=[name]) as session:
        return run_dataset(session, samples.feeds)[name]


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_constant_parts_of_channels_move_into_the_next_bias(activation: str) -> None:
    model = chain(activation)
    samples = data(model)
    result, channels = absorbed(model, find_pairs(model), samples)
    assert channels == 4
    before, after = values(model, samples, "y"), values(result, samples, "y")
    np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())
    assert values(result, samples, "r").max() < 0.5 * values(model, samples, "r").max()


def test_channels_at_the_ceiling_and_layers_that_pad_stay_as_they_are() -> None:
    for model in (chain("relu6", offset=5.9), chain(second="<pads = [1, 1, 1, 1]>"), chain(offset=0.0)):
        assert absorbed(model, find_pairs(model), data(model)) == (model, 0)
    model = chain("hardswish")
    assert find_pairs(model) == []


def test_the_rung_offers_absorption_after_equalisation() -> None:
    model = chain()
    bench = make_bench(model, data(model))
    details = [detail for detail, _ in equalise_layers(candidate(model, bench.train, QuantizeOptions()), bench)]
    assert any("4 channels absorbed" in detail for detail in details), details


def head(op: str) -> ir.Model:
    """Two boxes of hundreds, one objectness, five scores."""
    rng = np.random.default_rng(2)
    gains = np.array([300, 200, 1, 2, 1, 1, 1, 1], np.float32)
    if op == "Gemm":
        weight = (rng.standard_normal((6, 8)) * gains).astype(np.float32)
        return hub("net (float[1, 6] x) => (float[1, 8] y) { y = Gemm (x, w, b) }", w=weight, b=gains)
    weight = (rng.standard_normal((8, 6, 1, 1)) * gains[:, None, None, None]).astype(np.float32)
    text = (
        "net (float[1, 6, 4, 4] x) => (float[1, 16, 8] y) <int64[3] s = {1, 8, 16}>"
        "{ c = Conv (x, w, b)  f = Reshape (c, s)  y = Transpose <perm = [0, 2, 1]> (f) }"
    )
    return hub(text, w=weight, b=gains)


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_a_head_is_split_where_the_ranges_part(op: str) -> None:
    model = head(op)
    bench = make_bench(model, data(model))
    start = candidate(model, bench.train, QuantizeOptions(observer="min-max"))
    detail, made = next(iter(split_heads(start, bench)))
    assert detail.endswith("in 2")
    kinds = [node.op_type for node in made.reference.graph]
    assert kinds.count(op) == 2 and kinds.count("Concat") == 1
    got, want = values(made.reference, bench.held_out, "y"), values(model, bench.held_out, "y")
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    joined = next(node for node in made.reference.graph if node.op_type == "Concat")
    assert made.spec.nodes[str(joined.name)].precision is NodePrecision.FLOAT32
    errors = []
    for one in (start, made):
        got, want = values(one.quantized().model, bench.held_out, "y"), values(model, bench.held_out, "y")
        scores = slice(2, None)
        errors.append(float(np.abs((got - want)[..., scores]).max()))
    assert errors[1] < errors[0] / 20
    assert all(
        made.spec.nodes[n].precision is NodePrecision.FLOAT32
        for n in made.spec.nodes
        if "Reshape" in n or "Transpose" in n
    )


def test_a_head_of_one_kind_and_one_that_must_stay_whole_are_left_alone() -> None:
    model = head("Gemm")
    bench = make_bench(model, data(model))
    whole = candidate(model, bench.train, QuantizeOptions(split_outputs=False))
    assert list(split_heads(whole, bench)) == []
    even = chain()
    bench = make_bench(even, data(even))
    assert list(split_heads(candidate(even, bench.train, QuantizeOptions()), bench)) == []


def test_stretches_end_where_the_widths_differ_too_much() -> None:
    assert stretches(np.array([100.0, 0.0, 120.0, 1.0, 5.0, 0.0, 80.0])) == [(0, 3), (3, 6), (6, 7)]
    assert stretches(np.array([0.0, 1.0, 2.0, 8.0])) == [(0, 4)]
    assert stretches(np.zeros(3)) == [(0, 3)]
