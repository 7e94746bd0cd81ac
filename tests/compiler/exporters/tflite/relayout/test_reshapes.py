"""Orders through a RESHAPE, against numpy."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from compiler.exporters.tflite.relayout.reshapes import groups, through

CASES = (
    ((2, 3, 4), (6, 4)),
    ((6, 4), (2, 3, 4)),
    ((2, 1, 3, 4), (2, 12)),
    ((4, 6), (3, 8)),
    ((1, 4, 3, 3), (1, 4, 9)),
    ((1, 5, 12), (1, 5, 3, 2, 2)),
    ((2, 3), (2, 1, 3, 1)),
    ((1, 1), (1,)),
)


@pytest.mark.parametrize(("before", "after"), CASES)
def test_the_memory_is_an_order_of_the_other_shape(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    data = np.arange(np.prod(before)).reshape(before)
    possible = 0
    for perm in permutations(range(len(before))):
        found = through(perm, before, after)
        if found is None:
            # Then no order of the result has this memory.
            memory = np.transpose(data, perm).ravel()
            assert not any(
                np.array_equal(np.transpose(data.reshape(after), order).ravel(), memory)
                for order in permutations(range(len(after)))
            )
            continue
        possible += 1
        np.testing.assert_array_equal(
            np.transpose(data, perm).ravel(), np.transpose(data.reshape(after), found).ravel()
        )
    assert possible


def test_groups_are_the_finest() -> None:
    assert groups((2, 6, 4), (12, 2, 2)) == [((0, 1), (0,)), ((2,), (1, 2))]
