"""minimise against brute force, with and without a limit on the tables."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from compiler.exporters.tflite.relayout.elimination import Table, minimise, total


def problem(seed: int) -> tuple[dict[int, int], list[Table]]:
    rng = np.random.default_rng(seed)
    sizes = {variable: int(rng.integers(2, 4)) for variable in range(6)}
    tables = []
    for _ in range(int(rng.integers(4, 12))):
        scope = tuple(int(v) for v in rng.permutation(6)[: int(rng.integers(0, 4))])
        tables.append(Table(scope, rng.integers(0, 50, [sizes[v] for v in scope])))
    return sizes, tables


@pytest.mark.parametrize("seed", range(30))
def test_the_minimum_is_that_of_brute_force(seed: int) -> None:
    sizes, tables = problem(seed)
    best = min(
        total(tables, dict(enumerate(values))) for values in product(*(range(sizes[variable]) for variable in range(6)))
    )
    solution = minimise(sizes, tables)
    assert solution.proven
    assert solution.cost == best == total(tables, solution.values)


@pytest.mark.parametrize("seed", range(10))
def test_a_limit_gives_an_assignment_that_is_not_called_proven(seed: int) -> None:
    sizes, tables = problem(seed)
    solution = minimise(sizes, tables, max_entries=2)
    assert set(solution.values) == set(sizes)
    assert solution.cost == total(tables, solution.values) >= minimise(sizes, tables).cost
    assert not solution.proven or solution.cost == minimise(sizes, tables).cost
