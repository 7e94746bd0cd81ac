"""Answers that are finite and yet wrong."""

from __future__ import annotations

import numpy as np
import pytest

from device_agent.errors import RequestError
from device_agent.guard import CONSTANT_AFTER, EXPLODED, LEARNED_FROM, OutputWatch, check_outputs


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
