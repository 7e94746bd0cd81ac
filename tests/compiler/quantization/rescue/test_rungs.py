"""Each rung against what it promises, measured by onnxruntime or by brute force, never by the rung's own code."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from compiler.errors import DataError
from compiler.hub_session import open_hub
from compiler.quantization.engine import quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.bias import correct_biases, correctable, means
from compiler.quantization.rescue.candidate import candidate, make_bench, replanned
from compiler.quantization.rescue.equalise import equalised, find_pairs
from compiler.quantization.rescue.islands import keep_sensitive_in_float, measure_sensitivity
from compiler.quantization.rescue.knapsack import Sensitivity, knapsack
from compiler.quantization.rescue.rounding import gptq, round_second_order
from compiler.quantization.spec import NodePrecision, QuantizationSpec
from compiler.quantization.structure import name_of
from compiler.verification.metrics import parity
from runtimes.session import Array, run_dataset
from tests.compiler.hub_models import hub
from tests.compiler.quantization.rescue.nets import samples, uneven_net


def answers(model: ir.Model, feeds: dict[str, Array]) -> Array:
    with open_hub(model) as session:
        return next(iter(run_dataset(session, feeds).values()))


def test_held_out_samples_are_not_calibrated_on() -> None:
    model = uneven_net()
    data = samples(model, 20)
    bench = make_bench(model, data)
    assert (bench.train.count, bench.held_out.count) == (15, 5)
    rows = {row.tobytes() for row in bench.train.feeds["image"]}
    assert not rows & {row.tobytes() for row in bench.held_out.feeds["image"]}
    assert bench.train.digest != data.digest


def test_too_few_samples_to_judge_on_are_refused() -> None:
    model = uneven_net()
    with pytest.raises(DataError, match="too few"):
        make_bench(model, samples(model, 7))


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_equalisation_leaves_the_function_alone_and_evens_the_channels(activation: str) -> None:
    model = uneven_net(activation)
    data = samples(model)
    result, pairs = equalised(model, data)
    assert [(p.depthwise, p.clipped) for p in pairs] == [
        (True, activation == "relu6"),
        (False, False),
        (False, False),
    ]
    before, after = answers(model, dict(data.feeds)), answers(result, dict(data.feeds))
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()
    peaks = []
    for one in (model, result):
        with open_hub(one, taps=["a6"]) as session:
            seen = run_dataset(session, dict(data.feeds))["a6"]
        channel = seen.max(axis=(0, 2, 3))
        peaks.append(channel.max() / channel.min())
    assert peaks[0] > 300 > 10 > peaks[1]


def test_a_channel_that_meets_the_ceiling_of_relu6_is_left_alone() -> None:
    model = uneven_net("relu6", ratio=50.0, gain=8.0)
    data = samples(model)
    with open_hub(model, taps=["a6"]) as session:
        assert run_dataset(session, dict(data.feeds))["a6"].max() == 6.0
    before, after = answers(model, dict(data.feeds)), answers(equalised(model, data)[0], dict(data.feeds))
    assert np.abs(before - after).max() <= 1e-4 * np.abs(before).max()


def test_hard_swish_is_no_bridge() -> None:
    names = [(p.first, p.second) for p in find_pairs(uneven_net("hardswish"))]
    assert len(names) == 2  # the first convolution has none
    assert not any(first == "Conv_0" for first, _ in names)


def test_bias_correction_removes_the_shift_of_the_means() -> None:
    model = uneven_net(ratio=30.0)
    bench = make_bench(model, samples(model))
    start = candidate(model, bench.train, QuantizeOptions())
    (_, corrected), *_ = correct_biases(start, bench)
    nodes = correctable(start)
    wanted = means(model, nodes, bench.train)

    def shift(one: ir.Model) -> list[float]:
        found = means(one, nodes, bench.train)
        return [float(np.abs(found[n] - wanted[n]).max() / np.abs(wanted[n]).max()) for n in wanted]

    before, after = shift(start.quantized().model), shift(corrected.quantized().model)
    assert sum(after) < 0.5 * sum(before), (before, after)
    # The convolution without a bias got one, as an int32 constant.
    unbiased = [name_of(n) for n in nodes if len(n.inputs) == 2]
    assert unbiased
    assert all(corrected.spec.constant(name, 2) is not None for name in unbiased)


def test_gptq_is_never_worse_than_nearest_and_close_to_the_optimum() -> None:
    """Against every combination of rounding up or down, for correlated inputs."""
    rng = np.random.default_rng(0)
    columns = 6
    x = rng.standard_normal((200, 2)) @ rng.standard_normal((2, columns)) + 0.2 * rng.standard_normal((200, columns))
    hessian = (x.T @ x / 200)[np.newaxis]
    weight = rng.standard_normal((1, 8, columns))
    scale = np.full((1, 8), 0.25)
    codes = gptq(weight, scale, hessian, -127, 127)

    def error(q: Array, row: int) -> float:
        d = q * 0.25 - weight[0, row]
        return float(d @ hessian[0] @ d)

    found = [error(codes[0, r].astype(float), r) for r in range(8)]
    nearest = [error(np.rint(weight[0, r] / 0.25), r) for r in range(8)]
    floor = np.floor(weight[0] / 0.25)
    best = [
        min(error(floor[r] + np.array(up), r) for up in itertools.product((0, 1), repeat=columns)) for r in range(8)
    ]
    assert sum(found) < 0.5 * sum(nearest)
    assert sum(found) < 3.0 * sum(best)


def test_gptq_without_correlation_is_rounding_to_nearest() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 3, 5))
    scale = np.full((2, 3), 0.1)
    codes = gptq(weight, scale, np.stack([np.eye(5)] * 2), -127, 127)
    assert np.array_equal(codes, np.rint(weight / 0.1))


def test_a_column_that_is_never_fed_spoils_nothing() -> None:
    weight = np.random.default_rng(0).standard_normal((1, 3, 5))
    hessian = np.eye(5)[np.newaxis].copy()
    hessian[0, 2, 2] = 0.0
    assert np.array_equal(gptq(weight, np.full((1, 3), 0.1), hessian, -127, 127), np.rint(weight / 0.1))


def test_rounded_weights_arrive_in_the_hub_as_chosen() -> None:
    model = uneven_net(ratio=3.0)
    bench = make_bench(model, samples(model))
    (_, made), *_ = round_second_order(candidate(model, bench.train, QuantizeOptions()), bench)
    stored = {n: v.const_value.numpy() for n, v in made.quantized().model.graph.initializers.items() if v.const_value}
    for (node, index), wanted in made.overrides.items():
        params = made.spec.constant(node, index)
        assert params is not None
        codes = params.quantize(wanted)
        assert np.array_equal(params.dequantize(codes), wanted)
        assert any(a.dtype == np.int8 and a.shape == codes.shape and np.array_equal(a, codes) for a in stored.values())


def test_a_node_left_in_float_gets_its_own_weight_back() -> None:
    model = uneven_net(ratio=3.0)
    bench = make_bench(model, samples(model))
    *_, (_, made) = round_second_order(candidate(model, bench.train, QuantizeOptions()), bench)
    name = next(name for name, index in made.overrides if index == 1)
    island = replanned(made, QuantizeOptions(keep_float=(name,)))
    assert island.spec.nodes[name].precision is NodePrecision.FLOAT32
    assert not any(node == name for node, _ in island.overrides)
    others = [(n, i) for n, i in made.overrides if n != name and i == 1]
    assert all(island.spec.constant(n, i) == made.spec.constant(n, i) for n, i in others)
    assert island.quantized().model is not None


def test_sensitivity_is_what_quantizing_anew_without_the_node_gains() -> None:
    model = uneven_net(ratio=3.0)
    bench = make_bench(model, samples(model))
    table = {s.node: s for s in measure_sensitivity(candidate(model, bench.train, QuantizeOptions()), bench)}
    few = dict(bench.train.take(32).feeds)
    plain = {"logits": answers(model, few)}

    def snr(keep: tuple[str, ...]) -> float:
        made = quantize(model, bench.train, QuantizeOptions(keep_float=keep)).model
        return parity({"logits": answers(made, few)}, plain).snr_db

    base = snr(())
    for name in ("Conv_0", "Gemm_8"):
        assert table[name].gain_db == pytest.approx(snr((name,)) - base, abs=1e-6)
        assert table[name].cost > 3 * 60


MIXED = """
net (float[1, 8] x) => (float[1, 6] y) {
  scores = Gemm <transB = 1> (x, ws, bs)
  box = Gemm <transB = 1> (x, wb, bb)
  y = Concat <axis = 1> (scores, box)
}
"""


def mixed_head(factor: float = 150.0) -> ir.Model:
    """Scores of about 1 and boxes of about 500."""
    rng = np.random.default_rng(3)
    arrays = {
        "ws": rng.standard_normal((4, 8)) * 0.3,
        "bs": rng.standard_normal(4),
        "wb": rng.standard_normal((2, 8)) * factor,
        "bb": rng.standard_normal(2),
    }
    return hub(MIXED, **{name: array.astype(np.float32) for name, array in arrays.items()})


def scales_apart(spec: QuantizationSpec) -> float:
    """One scale for both leaves the scores a handful of codes."""
    return float(spec.activations["box"].scale[0] / spec.activations["scores"].scale[0])


def test_a_concat_of_unlike_ranges_is_found_by_the_rung_and_left_in_float() -> None:
    model = mixed_head()
    bench = make_bench(model, samples(model))
    start = candidate(model, bench.train, QuantizeOptions(split_outputs=False))
    assert scales_apart(start.spec) == 1.0
    *_, (_, made) = keep_sensitive_in_float(start, bench)
    assert made.spec.nodes["Concat_2"].precision is NodePrecision.FLOAT32
    assert scales_apart(made.spec) > 50


def test_a_final_concat_of_unlike_ranges_is_left_in_float_from_the_start() -> None:
    model = mixed_head()
    spec = quantize(model, samples(model)).spec
    assert "times as wide as 'scores'" in spec.nodes["Concat_2"].reason
    assert spec.nodes["Concat_2"].precision is NodePrecision.FLOAT32 and scales_apart(spec) > 50


def test_a_final_concat_of_like_ranges_stays_int8() -> None:
    model = mixed_head(factor=0.4)
    assert quantize(model, samples(model)).spec.nodes["Concat_2"].precision is NodePrecision.INT8


def test_a_concat_that_int8_goes_on_from_stays_int8() -> None:
    text = MIXED.replace("=> (float[1, 6] y)", "=> (float[1, 6] z)").replace(
        "(scores, box)", "(scores, box)  z = Relu (y)"
    )
    model = mixed_head()
    arrays = {name: np.array(value.const_value) for name, value in model.graph.initializers.items()}
    spec = quantize(hub(text, **arrays), samples(model)).spec
    assert spec.nodes["Concat_2"].precision is NodePrecision.INT8


def test_the_knapsack_is_the_best_subset_that_fits() -> None:
    rng = np.random.default_rng(5)
    table = [
        Sensitivity(f"n{i}", "Conv", 1.0, float(g), int(b))
        for i, (g, b) in enumerate(zip(rng.random(9), rng.integers(1, 60, 9), strict=True))
    ]
    for budget in (10, 60, 120, 200):
        chosen = knapsack(table, budget)
        cost = {s.node: s.cost for s in table}
        gain = {s.node: s.gain_power for s in table}
        assert sum(cost[n] for n in chosen) <= budget
        subsets = (c for k in range(10) for c in itertools.combinations(cost, k) if sum(cost[n] for n in c) <= budget)
        assert sum(gain[n] for n in chosen) == pytest.approx(max(sum(gain[n] for n in c) for c in subsets))
    with pytest.raises(DataError):
        knapsack(table, 0)
