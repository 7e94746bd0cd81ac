"""Residual arithmetic is a bijection for all bit patterns, and close floats get small residuals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtimes.artifact.delta.format import WIDTH, Kind
from runtimes.artifact.delta.residuals import decode, encode


@pytest.mark.parametrize("kind", list(WIDTH))
@settings(deadline=None)
@given(data=st.data())
def test_decode_inverts_encode(kind: Kind, data: st.DataObject) -> None:
    dtype = np.dtype(f"<u{WIDTH[kind]}")
    count = data.draw(st.integers(1, 40))
    base, new = (data.draw(hnp.arrays(dtype, count)) for _ in range(2))
    mirrored = data.draw(st.sampled_from([None, np.arange(count) % 3 == 0])) if kind is not Kind.DIFF4 else None
    residuals = encode(base, new, kind, mirrored)
    assert residuals.dtype == dtype
    np.testing.assert_array_equal(decode(base, residuals, kind, mirrored), new)


def test_all_float16_patterns_survive_on_each_other() -> None:
    everything = np.arange(1 << 16, dtype="<u2")
    for shift in (0, 1, 0x8000, 0xFFFF, 12345):
        other = np.roll(everything, shift)
        np.testing.assert_array_equal(
            decode(other, encode(other, everything, Kind.ORDERED16), Kind.ORDERED16), everything
        )


def test_neighbouring_floats_differ_by_one_step_also_across_zero() -> None:
    values = np.array([-2.0, -1e-40, 0.0, 1.0], np.float32)
    above = np.nextafter(values, np.float32(np.inf))
    residuals = encode(values.view("<u4"), above.view("<u4"), Kind.ORDERED32)
    np.testing.assert_array_equal(residuals, 2)  # zigzag(+1)


def test_int8_wraps() -> None:
    base, new = np.array([127, -128], np.int8), np.array([-128, 127], np.int8)
    np.testing.assert_array_equal(encode(base.view("u1"), new.view("u1"), Kind.DIFF8), [2, 1])


def test_nibbles_wrap_by_themselves() -> None:
    base, new = np.array([0x7F, 0x08], np.uint8), np.array([0x80, 0xF7], np.uint8)
    # low: 15 -> 0 is +1, 8 -> 7 is -1; high: 7 -> 8 is +1, 0 -> 15 is -1
    np.testing.assert_array_equal(encode(base, new, Kind.DIFF4), [0x22, 0x11])
