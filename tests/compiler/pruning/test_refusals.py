"""What cannot be proven stays whole, with the reason: each case is a near miss of a pattern that works."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from compiler.errors import DataError, UnsupportedModel
from compiler.pruning import PruneOptions, PrunePlan, perform, plan, prune
from tests.compiler.pruning.nets import feeds, net

CONV = {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1)}
REFUSED = {
    "a graph output": (
        "g (float[1, 3, 4, 4] x) => (float[1, 8, 4, 4] y) { y = Conv(x, w1) }", {"w1": (8, 3, 1, 1)}, {},
        "are the graph output 'y'",
    ),
    "a grouped convolution that is not depthwise": (
        "g (float[1, 3, 4, 4] x) => (float[1, 8, 4, 4] y) { a = Conv(x, w1) y = Conv<group = 2>(a, w2) }",
        {"w1": (8, 3, 1, 1), "w2": (8, 4, 1, 1)}, {}, "not depthwise",
    ),
    "a channel shuffle": (
        """g (float[1, 3, 4, 4] x) => (float[1, 8, 4, 4] y) {
          a = Conv(x, w1) s = Reshape(a, apart) t = Transpose<perm = [0, 2, 1, 3, 4]>(s) r = Reshape(t, back)
          y = Conv(r, w2) }""",
        CONV, {"apart": np.array([1, 2, 4, 4, 4]), "back": np.array([1, 8, 4, 4])}, "does not keep the channels apart",
    ),
    "a softmax over the channels": (
        "g (float[1, 3, 4, 4] x) => (float[1, 8, 4, 4] y) { a = Conv(x, w1) s = Softmax<axis = 1>(a) y = Conv(s, w2) }",
        CONV, {}, "Softmax over the channels",
    ),
    "an operator without a rule": (
        "g (float[1, 3, 4, 4] x) => (float[1, 8, 4, 4] y) { a = Conv(x, w1) s = LRN<size = 3>(a) y = Conv(s, w2) }",
        CONV, {}, "no coupling rule for LRN",
    ),
    "a residual to a graph input": (
        "g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y) { a = Conv(x, w1) s = Add(a, x) y = Conv(s, w2) }",
        {"w1": (8, 8, 1, 1), "w2": (8, 8, 1, 1)}, {}, "nothing says what they are",
    ),
    "a mean over the channels": (
        """g (float[1, 3, 4, 4] x) => (float[1, 8, 4, 4] y) {
          a = Conv(x, w1) m = ReduceMean<keepdims = 1>(a, axes) s = Sub(a, m) y = Conv(s, w2) }""",
        CONV, {"axes": np.array([1])}, "ReduceMean over the channels",
    ),
    "a weight that something else reads": (
        """g (float[1, 3, 4, 4] x) => (float[1, 8, 4, 4] y, float[8, 3, 1, 1] z) {
          a = Conv(x, w1) y = Conv(a, w2) z = Relu(w1) }""",
        CONV, {}, "is also read where its channels cannot be followed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_proven_is_refused_with_its_reason(name: str) -> None:
    text, weights, constants, reason = REFUSED[name]
    with pytest.raises(UnsupportedModel) as caught:
        plan(net(text, weights, constants=constants), PruneOptions(saliency="weight", granularity=1))
    assert any(reason in refusal.reason and refusal.where == "prune" for refusal in caught.value.refusals), caught.value


CHAIN = "g (float[1, 3, 4, 4] x) => (float[1, 8, 4, 4] y) { a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }"


def test_a_plan_survives_json_and_says_what_it_does() -> None:
    made = plan(net(CHAIN, CONV), PruneOptions(share=0.5, granularity=2), feeds((3, 4, 4)))
    assert PrunePlan.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert "Conv_0: 8 -> 4 channels" in str(made)
    assert "the graph output 'y'" in str(made)
    assert made.before.macs == 16 * (8 * 3 + 8 * 8)
    assert made.after.macs == 16 * (4 * 3 + 8 * 4)


def test_a_damaged_plan_and_a_plan_for_another_model_are_refused() -> None:
    made = plan(net(CHAIN, CONV), PruneOptions(share=0.5, granularity=2), feeds((3, 4, 4)))
    document = json.loads(json.dumps(made.to_dict()))
    del document["instructions"][0]["axis"]
    with pytest.raises(DataError, match="damaged"):
        PrunePlan.from_dict(document)
    with pytest.raises(DataError, match="schema"):
        PrunePlan.from_dict({**document, "schema": "x"})
    other = net(CHAIN, {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1)})
    other.graph[0].name = "renamed"
    with pytest.raises(DataError, match="another model"):
        perform(other, made)


def test_kept_nodes_small_groups_and_unreachable_shares() -> None:
    model = net(CHAIN, CONV)
    with pytest.raises(UnsupportedModel, match="the caller keeps"):
        plan(model, PruneOptions(keep=("Conv_*",), granularity=1, saliency="weight"))
    with pytest.raises(UnsupportedModel, match="allow no cut at granularity 8"):
        plan(model, PruneOptions(saliency="weight"))
    made = plan(model, PruneOptions(share=0.9, granularity=2, largest_cut=0.5, saliency="weight"))
    assert made.removed == 4
    assert "50.0%" in made.notes[0]


def test_bad_options_and_data_have_remedies() -> None:
    for bad in ({"share": 0.0}, {"share": 1.0}, {"granularity": 0}, {"largest_cut": 1.0}):
        with pytest.raises(DataError) as caught:
            dataclasses.replace(PruneOptions(), **bad)
        assert caught.value.remedy
    model = net(CHAIN, CONV)
    with pytest.raises(DataError, match="needs samples"):
        plan(model, PruneOptions(granularity=1))
    with pytest.raises(DataError, match="numbers of samples"):
        prune(model, {"x": np.zeros((0, 3, 4, 4), np.float32)}, PruneOptions(granularity=1))
