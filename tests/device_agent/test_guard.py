"""Answers that are finite and yet wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from device_agent import drift
from device_agent.drift import DriftMonitor
from device_agent.errors import RequestError
from device_agent.guard import CONSTANT_AFTER, EXPLODED, FEW, LEARNED_FROM, OutputWatch, check_outputs, extremes
from runtimes.artifact.manifest import DriftBaseline, OutputSpec
from tests.simulators.repository import RepositorySimulator


def test_the_same_answer_to_different_questions_is_said_once() -> None:
    watch = OutputWatch()
    same = {"y": np.zeros(3, np.float32)}
    said = [watch.observe({"x": np.full(2, n, np.float32)}, same, 0.0) for n in range(3 * CONSTANT_AFTER)]
    assert [words for words in said if words] == [["constant"]] and said[CONSTANT_AFTER] == ["constant"]


def test_the_same_answer_to_the_same_question_is_none() -> None:
    watch = OutputWatch()
    x, y = {"x": np.ones(2, np.float32)}, {"y": np.ones(2, np.float32)}
    assert not any(watch.observe(x, y, 1.0) for _ in range(3 * CONSTANT_AFTER))


def test_another_answer_starts_the_count_anew() -> None:
    watch = OutputWatch()
    for n in range(3 * CONSTANT_AFTER):
        y = {"y": np.full(2, n // (CONSTANT_AFTER // 2), np.float32)}
        assert not watch.observe({"x": np.full(2, n, np.float32)}, y, 1.0)


def test_magnitudes_a_thousand_times_the_usual_explode() -> None:
    watch = OutputWatch()

    def seen(n: int, magnitude: float) -> list[str]:
        return watch.observe({"x": np.full(1, n)}, {"y": np.full(1, n)}, magnitude)

    assert not any(seen(n, 2.0) for n in range(LEARNED_FROM))
    assert not seen(1000, 2.0 * EXPLODED)
    assert seen(1001, 2.1 * EXPLODED) == ["exploding"] and not seen(1002, 3.0 * EXPLODED)
    assert not seen(1003, 1.0) and seen(1004, 9.0 * EXPLODED) == ["exploding"]


def test_check_outputs_finds_the_largest_magnitude_and_what_is_not_finite() -> None:
    assert check_outputs({"a": np.array([1.0, -3.0]), "b": np.array([7], np.int64), "c": np.zeros((0, 2))}) == 3.0
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(RequestError) as error:
            check_outputs({"a": np.array([0.0, bad], np.float16)})
        assert error.value.status == 500


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["float16", "float32", "float64", "int8", "uint16", "int64"]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=3, max_side=2 * FEW // 16))
    )
)
def test_extremes_are_numpys_whatever_the_size(array: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(extremes(array), (float(array.min()), float(array.max())))


@pytest.mark.parametrize("semantic", ["logits", "probabilities"])
def test_a_sample_alone_is_counted_as_among_others(
    semantic: str, repository: RepositorySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short way for one small sample fills the bins that numpy fills."""
    spec = {"edges": [0.1, 0.25, 0.4, 0.9], "counts": [1] * 5}
    baseline = DriftBaseline.model_validate({"inputs": {"x": spec}, "confidence": spec, "classes": [1] * 3})
    output = OutputSpec.model_validate({"name": "y", "dtype": "float32", "shape": [None, 4], "semantic": semantic})
    drafted = repository.publish("r1")
    manifest = drafted.model_copy(update={"drift": baseline, "outputs": (output,)})
    random = np.random.default_rng(3)
    samples = [(random.random((1, 6), np.float32), random.random((1, 4), np.float32)) for _ in range(200)]
    short, long = DriftMonitor(baseline), DriftMonitor(baseline)
    for x, y in samples:
        short.observe(manifest, {"x": x}, {"y": y})
    monkeypatch.setattr(drift, "FEW", 0)
    for x, y in samples:
        long.observe(manifest, {"x": x}, {"y": y})
    for quantity in ("input:x", "confidence", "class"):
        np.testing.assert_array_equal(short.counts[quantity], long.counts[quantity])
        assert short.counts[quantity].sum() > 100, "three of four classes are watched"
