"""Predictions that wait: the bytes are those of one segment after the other, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.publish.delta.encode import pack
from runtimes.artifact.delta import apply_delta
from runtimes.artifact.delta.format import Kind, Predictor, Segment
from runtimes.artifact.delta.predict import Layout, plain
from runtimes.artifact.delta.waiting import CHUNK_ELEMENTS, MOST_PARTS, Part, Waiting


def _applied(base: bytes, new: bytes, plan: list[Segment], folder: Path) -> bytes:
    (folder / "base").write_bytes(base)
    (folder / "patch").write_bytes(pack(base, new, plan))
    apply_delta(folder / "base", folder / "patch", folder / "out", max_result_bytes=len(new))
    return (folder / "out").read_bytes()


def test_a_prediction_sees_the_residuals_that_were_still_waiting(tmp_path: Path) -> None:
    """c = b * s and b = a * s, where a and s themselves come out of residuals: each must be there before the next."""
    random = np.random.default_rng(0)
    old = random.normal(1, 0.1, 9).astype("<f4")
    now = old + random.normal(0, 1e-3, 9).astype("<f4")
    a, s = now[:8], now[8:]
    new = np.concatenate([now, a * s, a * s * s])
    product = Segment(Kind.ORDERED32, 0, 32, 36, Predictor.PRODUCT, left=0, right=32, channels=8)
    again = Segment(Kind.ORDERED32, 0, 32, 68, Predictor.PRODUCT, left=36, right=32, channels=8)
    plan = [Segment(Kind.ORDERED32, 0, 36), product, again]
    assert _applied(old.tobytes(), new.tobytes(), plan, tmp_path) == new.tobytes()


@pytest.mark.parametrize(
    "sizes", [[1] * (2 * MOST_PARTS + 3), [CHUNK_ELEMENTS - 1, 5, CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS + 7]]
)
def test_many_small_and_few_large_segments_give_the_same_bytes(sizes: list[int], tmp_path: Path) -> None:
    """Of two kinds in turns, so that what waits belongs to different streams, and with copies in between."""
    random = np.random.default_rng(1)
    plan, place = [], 0
    for index, count in enumerate(sizes):
        kind, width = ((Kind.DIFF8, 1), (Kind.DIFF16, 2), (Kind.COPY, 1))[index % 3]
        plan.append(Segment(kind, place, count * width, place))
        place += count * width
    old = random.integers(0, 256, place, np.uint8)
    new = old.copy()
    for segment in plan:
        if segment.kind is not Kind.COPY:
            new[segment.result : segment.result + segment.size] += random.integers(0, 3, segment.size, np.uint8)
    assert _applied(old.tobytes(), new.tobytes(), plan, tmp_path) == new.tobytes()


def test_what_waits_is_bounded() -> None:
    waiting, one = Waiting({}), np.zeros(1, np.uint8)
    for place in range(MOST_PARTS):
        assert waiting.room
        waiting.add(Kind.DIFF8, Part(place, plain(one), one))
    assert not waiting.room
    assert waiting.holds(((MOST_PARTS - 1, MOST_PARTS + 4),)) and not waiting.holds(((MOST_PARTS, MOST_PARTS + 4),))


def test_values_of_channels_are_spread_over_any_stretch() -> None:
    random = np.random.default_rng(2)
    for channels, inner, start, count in random.integers(1, [9, 40, 300, 100], (400, 4)).tolist():
        values = random.random(channels)
        found = np.broadcast_to(Layout(channels, inner).spread(values, start, count), (count,))
        np.testing.assert_array_equal(found, values[(np.arange(start, start + count) // inner) % channels])
