from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_benchmarks.statistics import compare, percentile


def test_percentile_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = -np.log(1 - 0.9)  # the 90th percentile of the exponential distribution
    covered = 0
    for _ in range(1000):
        found = percentile(rng.exponential(size=400).tolist(), 0.9)
        assert found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 1000 <= 0.98  # 95 % nominal; ranks are rounded outwards


def test_a_small_sample_has_no_interval_for_p99() -> None:
    assert percentile(list(range(64)), 0.99).high is None
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_nearest_rank_is_numpys_inverted_cdf(values: list[float], share: float) -> None:
    assert percentile(values, share).value == np.quantile(values, share, method="inverted_cdf")


def test_noise_widens_the_band() -> None:
    assert compare("a", [100, 101, 102], [110, 110, 111], 0.05).verdict == "slower"
    assert compare("a", [100, 101, 102], [101.5, 112, 112], 0.05).verdict == "same", "the sets overlap"
    assert compare("a", [100, 115, 102], [110, 110, 111], 0.05).verdict == "same"
    assert compare("a", [100, 101, 102], [90, 90, 91], 0.05).verdict == "faster"
    assert compare("a", [100, 100, 100], [104, 104, 104], 0.05).verdict == "same"
