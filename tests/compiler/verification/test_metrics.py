from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compiler.verification import metrics


def test_parity_names_the_worst_tensor() -> None:
    reference = {"a": np.array([[0.0, 10.0]], np.float32), "b": np.array([[0.0, 1.0]], np.float32)}
    outputs = {"a": np.array([[0.0, 10.5]], np.float32), "b": np.array([[0.1, 1.0]], np.float32)}
    found = metrics.parity(outputs, reference)
    assert found.worst_tensor == "b"
    assert found.max_abs_error == pytest.approx(0.1)
    assert found.relative_error == pytest.approx(0.1)
    assert found.snr_db == pytest.approx(10 * math.log10(1 / 0.01), rel=1e-5)
    assert found.agreement == 1.0


def test_parity_of_equal_outputs_is_exact() -> None:
    reference = {"y": np.arange(6, dtype=np.float32).reshape(2, 3)}
    found = metrics.parity(reference, reference)
    assert (found.max_abs_error, found.relative_error, found.snr_db) == (0.0, 0.0, math.inf)


def test_nan_is_infinitely_wrong() -> None:
    reference = {"y": np.ones((1, 2), np.float32)}
    found = metrics.parity({"y": np.array([[np.nan, 1]], np.float32)}, reference)
    assert not found.finite
    assert found.relative_error == math.inf


def test_other_names_or_shapes_are_our_own_mistake() -> None:
    reference = {"y": np.ones((1, 2))}
    with pytest.raises(ValueError, match="reference's"):
        metrics.parity({"z": np.ones((1, 2))}, reference)
    with pytest.raises(ValueError, match="shape"):
        metrics.parity({"y": np.ones((2, 1))}, reference)


def test_step_agreement_counts_whole_steps() -> None:
    scale = 0.25
    first = {"y": np.array([0.0, 0.25, 0.5, 1.0])}
    second = {"y": np.array([0.0, 0.5, 1.0, 1.0001])}
    pair = metrics.step_agreement(("a", first), ("b", second), {"y": scale})
    assert (pair.max_steps, pair.share_equal, pair.share_within_one, pair.share_within_two) == (2.0, 0.5, 0.75, 1.0)


def test_step_agreement_of_nan_is_infinite() -> None:
    pair = metrics.step_agreement(("a", {"y": np.array([np.nan])}), ("b", {"y": np.array([0.0])}), {"y": 1.0})
    assert pair.max_steps == math.inf
    assert pair.share_within_two == 0.0


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_agrees_with_scipy(case: tuple[int, int]) -> None:
    successes, total = case
    expected = stats.binomtest(successes, total).proportion_ci(0.95, method="wilson")
    assert metrics.wilson_interval(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_agrees_with_scipy(lost: int, gained: int) -> None:
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert metrics.mcnemar_p(lost, gained) == pytest.approx(expected, abs=1e-9)


def test_flips_are_paired() -> None:
    labels = np.array([0, 1, 1, 0])
    reference = np.eye(2)[[0, 1, 0, 1]]
    outputs = np.eye(2)[[1, 1, 1, 1]]
    found = metrics.flips(outputs, reference, labels)
    assert (found.lost, found.gained, found.drop_points) == (1, 1, 0.0)
    assert metrics.accuracy(outputs, labels).correct == 2


def test_steps_of_several_codes_forgive_what_16_bit_kernels_lose() -> None:
    first = np.array([0.0, 0.10, 0.32], np.float32)
    second = first + np.array([0.0, 0.03, 0.33], np.float32)  # 0, 3 and 33 codes of a scale of 0.01
    fine = metrics.step_agreement(("a", {"y": first}), ("b", {"y": second}), {"y": 0.01})
    coarse = metrics.step_agreement(("a", {"y": first}), ("b", {"y": second}), {"y": 0.01}, codes_per_step=32)
    assert (fine.max_steps, fine.share_within_one) == (33.0, 1 / 3)
    assert (coarse.max_steps, coarse.share_within_one, coarse.codes_per_step) == (1.0, 1.0, 32)
