"""Observers: exact extremes, order independence, percentiles and errors against numpy, bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.calibration.channels import ChannelObserver
from compiler.calibration.collect import collect, collect_by
from compiler.calibration.dataset import make_dataset
from compiler.calibration.histogram import BINS, Histogram
from compiler.calibration.observers import OBSERVERS, Range, divergence
from compiler.errors import DataError
from runtimes.session import Array, TensorSpec
from tests.compiler.hub_models import hub

FLOATS = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def observed(name: str, *parts: Array) -> Range:
    observer = OBSERVERS.get(name)()
    for part in parts:
        observer.update(part)
    return observer.result()


@settings(max_examples=60, deadline=None)
@given(FLOATS, st.integers(0, 60))
def test_a_histogram_does_not_depend_on_how_values_arrive(values: Array, cut: int) -> None:
    whole, parts = Histogram(), Histogram()
    whole.update(values)
    for part in (values[cut:], values[:cut]):
        parts.update(part)
    assert whole.width == parts.width
    np.testing.assert_array_equal(whole.edges, parts.edges)
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == len(values) and len(whole.counts) <= BINS
    assert whole.edges[0] <= values.min() and values.max() < whole.edges[-1]


def test_histogram_counts_agree_with_numpy() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    histogram = Histogram()
    for part in np.split(values, 10):
        histogram.update(part)
    np.testing.assert_array_equal(histogram.counts, np.histogram(values.astype(np.float64), histogram.edges)[0])
    assert len(histogram.counts) > BINS // 2 - 2  # the range is not given away


@settings(max_examples=60, deadline=None)
@given(FLOATS, st.sampled_from(OBSERVERS.names()))
def test_every_range_contains_zero_and_stays_within_what_was_seen(values: Array, name: str) -> None:
    found = observed(name, values)
    assert found.low <= 0 <= found.high
    assert found.low >= min(float(values.min()), 0.0) and found.high <= max(float(values.max()), 0.0)
    assert 0.0 <= found.clipped_share <= 1.0


def test_min_max_is_exact_and_percentile_drops_outliers() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    values[17] = 1000.0
    assert observed("min-max", values).high == 1000.0
    found = observed("percentile", values)
    assert found.high == pytest.approx(np.quantile(values, 0.99995), abs=1.0)  # a bin of a range of 1000 is half wide
    assert 0 < found.clipped_share < 2e-4


def squared_error(values: Array, low: float, high: float) -> float:
    """Of 8-bit quantization, on the values themselves."""
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(values / scale) + zero, 0, 255)
    return float((((codes - zero) * scale - values) ** 2).mean())


@pytest.mark.parametrize("scale_of_outlier", [1.0, 30.0])
def test_mse_comes_close_to_an_exhaustive_search(scale_of_outlier: float) -> None:
    values = np.random.default_rng(0).normal(size=5_000).astype(np.float32)
    values[0] *= scale_of_outlier
    found = observed("mse", values)
    lows, highs = (np.linspace(end * 1.0, end * 0.02, 60) for end in (values.min(), values.max()))
    best = min(squared_error(values, float(low), float(high)) for low in lows for high in highs)
    assert squared_error(values, found.low, found.high) <= 1.1 * best
    assert squared_error(values, found.low, found.high) <= squared_error(
        values, float(values.min()), float(values.max())
    )


def test_an_observer_that_saw_nothing_says_so() -> None:
    for name in OBSERVERS:
        with pytest.raises(ValueError, match="saw nothing"):
            OBSERVERS.get(name)().result()


NET = """
g (float[1, 3] x) => (float[1, 3] y)
{
  a = Exp(x)
  b = Neg(a)
  y = Relu(b)
}
"""


def test_collect_in_groups_equals_collect_at_once() -> None:
    data = make_dataset(
        {"x": np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)},
        (TensorSpec("x", "float32", (1, 3)),),
        where="test",
    )
    steps: list[tuple[int, int]] = []
    at_once = collect(hub(NET), data, observer="mse")
    grouped = collect(hub(NET), data, observer="mse", group_bytes=12, progress=lambda _, i, n: steps.append((i, n)))
    assert at_once == grouped
    assert set(at_once.ranges) == {"x", "a", "b", "y"}
    assert steps[-1] == (120, 120)
    x = data.feeds["x"]
    found = collect(hub(NET), data, observer="min-max").ranges["a"]
    assert (found.observed_low, found.observed_high) == pytest.approx((np.exp(x).min(), np.exp(x).max()), rel=1e-6)


def test_an_activation_that_overflows_is_named() -> None:
    samples = np.zeros((40, 3), np.float32)
    samples[5, 1] = 1000.0
    data = make_dataset({"x": samples}, (TensorSpec("x", "float32", (1, 3)),), where="test")
    with pytest.raises(DataError, match=r"Value 'a' became NaN or infinite .* sample 5"):
        collect(hub(NET), data)


def test_the_moving_average_is_the_mean_of_the_runs_extrema_and_odd_runs_move_it_little() -> None:
    parts = [np.random.default_rng(i).normal(size=100).astype(np.float32) for i in range(50)]
    found = observed("moving-average", *parts)
    assert found.high == pytest.approx(np.mean([p.max() for p in parts]))
    assert found.low == pytest.approx(np.mean([p.min() for p in parts]))
    assert observed("moving-average", *parts, np.full(100, 100, np.float32)).high < found.high + 2.0
    outside = np.mean([(p < found.low) | (p > found.high) for p in parts])
    assert found.clipped_share == pytest.approx(outside, abs=2e-3)


def test_the_divergence_is_scipys_entropy_of_the_two_distributions() -> None:
    from scipy.stats import entropy

    rng = np.random.default_rng(0)
    centers, counts = np.linspace(-2, 3, 400), rng.integers(0, 50, 400)
    low, high = -1.0, 2.0
    scale = (high - low) / 255
    inside = (centers >= low) & (centers <= high)
    p, q = counts[inside].astype(float), counts[inside].astype(float)
    p[0] += counts[centers < low].sum()
    p[-1] += counts[centers > high].sum()
    codes = np.rint(centers[inside] / scale)
    for code in np.unique(codes):
        members = (codes == code) & (q > 0)
        q[members] = q[members].mean() if members.any() else 0
    assert divergence(centers, counts, low, high) == pytest.approx(entropy(p[p > 0], np.maximum(q[p > 0], 1)), rel=1e-6)


def test_entropy_cuts_off_a_lonely_outlier_and_keeps_an_even_spread() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=50_000).astype(np.float32)
    values[0] = 100.0
    assert 2.0 < observed("entropy", values).high < 20.0
    even = rng.uniform(-1, 1, 50_000).astype(np.float32)
    found = observed("entropy", even)
    assert found.high > 0.95 and found.low < -0.95


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=3), st.integers(-2, 1))
def test_channels_are_observed_as_numpy_sees_them_at_once(cuts: list[int], axis: int) -> None:
    values = (np.random.default_rng(0).normal(size=(30, 5, 4)) * 3 + 1000).astype(np.float32)
    found = ChannelObserver(axis % 3 or 1)
    axes = tuple(a for a in range(3) if a != (axis % 3 or 1))
    for part in np.split(values, sorted(cuts)):
        found.update(part)
    wide = values.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(found.variance, wide.var(axes), rtol=1e-9)
    np.testing.assert_array_equal(found.peak, np.abs(wide).max(axes))
    assert [r.observed_low for r in found.ranges()] == wide.min(axes).tolist()


def test_observers_in_one_pass_find_what_each_finds_alone() -> None:
    data = make_dataset(
        {"x": np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)},
        (TensorSpec("x", "float32", (1, 3)),),
        where="test",
    )
    together = collect_by(hub(NET), data, OBSERVERS.names())
    assert together == {name: collect(hub(NET), data, observer=name) for name in OBSERVERS.names()}
