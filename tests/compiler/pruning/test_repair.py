"""Repair: exact where exactness is possible, unfolding against onnxruntime, and never a loss on unseen rows."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.pruning import Measure, PruneOptions, prune
from compiler.pruning.flow import constant
from compiler.pruning.least_squares import Normal, fit
from compiler.pruning.performing import replace_array
from compiler.pruning.unfold import unfold, window_of
from tests.compiler.pruning.nets import answers, feeds, input_shape, net, weight_shape
from tests.compiler.pruning.test_exactness import CASES

GEOMETRIES = {
    "plain": "",
    "padded and strided": "<pads = [1, 0, 2, 1], strides = [2, 1]>",
    "dilated": "<dilations = [2, 1], pads = [1, 1, 1, 1]>",
    "same upper": '<auto_pad = "SAME_UPPER", strides = [2, 2]>',
    "same lower": '<auto_pad = "SAME_LOWER", strides = [2, 3]>',
    "valid": '<auto_pad = "VALID">',
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_unfolded_rows_times_weights_are_what_onnxruntime_answers(name: str) -> None:
    text = f"g (float[1, 3, 9, 8] x) => (float[1, 5, h, w] y) {{ y = Conv{GEOMETRIES[name]}(x, w1) }}"
    model = net(text, {"w1": (5, 3, 3, 2)})
    data = feeds((3, 9, 8), samples=2)
    expected = answers(model, data)
    positions = np.arange(np.prod(expected.shape[2:]))[::2]
    weight = constant(model.graph.initializers["w1"])
    assert weight is not None
    rows = unfold(data["x"], window_of(model.graph[0], (3, 2), (9, 8)), positions)
    flat = np.moveaxis(expected.reshape(2, 5, -1)[:, :, positions], 1, 2).reshape(-1, 5)
    np.testing.assert_allclose(rows @ weight.reshape(5, -1).T, flat, rtol=1e-5, atol=1e-5)


def test_twins_leave_without_loss_once_the_consumer_is_repaired() -> None:
    text = """g (float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y) {
      a = Conv(x, w1, b1) r = Relu(a) y = Conv<pads = [1, 1, 1, 1]>(r, w2) }"""
    model = net(text, {"w1": (8, 3, 1, 1), "b1": (8,), "w2": (4, 8, 3, 3)})
    for name in ("w1", "b1"):  # channels 4..7 repeat 0..3, twice as loud
        array = np.array(constant(model.graph.initializers[name]))
        array[4:] = 2 * array[:4]
        replace_array(model.graph.initializers[name], array)
    done = prune(model, feeds((3, 6, 6), samples=40), PruneOptions(share=0.5, granularity=1))
    # Of each pair exactly one leaves: one-shot scores would take both of the quietest pair.
    assert sorted(position % 4 for position in done.plan.groups[0].removed) == [0, 1, 2, 3]
    assert done.evidence.cut.relative_rms > 0.1
    assert done.evidence.repaired.relative_rms < 1e-3
    assert weight_shape(done.model, "w2") == [4, 4, 3, 3]


def test_a_repair_that_does_not_help_unseen_rows_is_not_applied() -> None:
    random = np.random.default_rng(0)
    start = random.normal(size=(30, 2))
    train, held = Normal(30, 2), Normal(30, 2)
    noise = random.normal(size=(31, 30)).astype(np.float32)
    train.add(noise, random.normal(size=(31, 2)).astype(np.float32) * 50)  # nothing to learn but noise
    inputs = random.normal(size=(500, 30)).astype(np.float32)
    held.add(inputs, (inputs @ start).astype(np.float32))
    found = fit(train, held, start)
    assert found.ridge is None
    assert found.after == found.before
    np.testing.assert_array_equal(found.solution, start)


def test_a_share_of_macs_is_reached() -> None:
    text = """g (float[1, 3, 8, 8] x) => (float[1, 4, 4, 4] y) {
      a = Conv(x, w1) r = Relu(a) b = Conv<strides = [2, 2]>(r, w2) s = Relu(b) y = Conv(s, w3) }"""
    model = net(text, {"w1": (16, 3, 1, 1), "w2": (16, 16, 1, 1), "w3": (4, 16, 1, 1)})
    done = prune(model, feeds((3, 8, 8)), PruneOptions(share=0.4, granularity=1, measure=Measure.MACS))
    part = 1 - done.plan.after.macs / done.plan.before.macs
    assert part == pytest.approx(0.4, abs=0.05)  # the nearest whole channel, at most 96 + 256 of 8448 MACs wide
    assert done.report()["before"]["macs"] == done.plan.before.macs


@pytest.mark.parametrize("name", CASES)
def test_every_coupling_can_be_repaired(name: str) -> None:
    case = CASES[name]
    model = net(case.text, case.weights, constants=case.constants)
    shape = input_shape(model)
    done = prune(model, feeds(shape, samples=400), PruneOptions(share=0.5, granularity=1, keep=case.keep))
    assert done.plan.removed > 0
    assert all(not repair.skipped and repair.error_after < repair.error_before for repair in done.evidence.repairs)
    assert done.evidence.repaired.relative_rms < done.evidence.cut.relative_rms
    assert np.isfinite(answers(done.model, feeds(shape))).all()
