"""The exact minimum of a sum of cost tables over variables with few values each.

Eliminating a variable replaces all tables that mention it by one table over its neighbours, which holds the best it can do for
each of their values; then the choices are read off backwards. The work is exponential only in how many variables are
neighbours at once: two or three in a network with skip connections, whatever its depth.
Source: Bertele and Brioschi, Nonserial Dynamic Programming, 1972; "bucket elimination", Dechter, 1999.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.exporters.tflite.tensors import Array

MAX_ENTRIES = 1 << 20  # of one table; past it a variable is fixed and the result is no longer proven


@dataclass(frozen=True, slots=True)
class Table:
    """int64 costs, one axis per variable of ``scope``, in that order; no variable twice."""

    scope: tuple[int, ...]
    costs: Array


@dataclass(frozen=True, slots=True)
class Solution:
    """``values`` per variable, the total ``cost``, and whether no assignment costs less."""

    values: dict[int, int]
    cost: int
    proven: bool


def minimise(sizes: Mapping[int, int], tables: Sequence[Table], *, max_entries: int = MAX_ENTRIES) -> Solution:
    """The cheapest value of every variable.

    Args:
        sizes: how many values each variable has; value 0 is what a variable falls back to and what ties go to.
        tables: their sum is the cost.
    """
    live = dict(enumerate(tables))
    held: dict[int, set[int]] = {variable: set() for variable in sizes}
    for number, table in live.items():
        for variable in table.scope:
            held[variable].add(number)
    steps: list[tuple[int, tuple[int, ...], Array]] = []
    fixed: dict[int, int] = {}
    waiting = set(sizes)
    while waiting:
        variable = min(waiting, key=lambda v: (_entries(v, held, live, sizes), v))
        if _entries(variable, held, live, sizes) > max_entries:
            variable = max(waiting, key=lambda v: (len(held[v]), -v))
            fixed[variable] = 0
            for number in list(held[variable]):
                _replace(number, _sliced(live[number], variable), live, held)
        else:
            steps.append(_eliminate(variable, held, live, sizes))
        waiting.discard(variable)
    values = dict(fixed)
    for variable, scope, best in reversed(steps):
        values[variable] = int(best[tuple(values[other] for other in scope)])
    return Solution(values, total(tables, values), not fixed)


def total(tables: Sequence[Table], values: Mapping[int, int]) -> int:
    return sum(int(table.costs[tuple(values[variable] for variable in table.scope)]) for table in tables)


def _neighbours(variable: int, held: dict[int, set[int]], live: dict[int, Table]) -> list[int]:
    return sorted({other for number in held[variable] for other in live[number].scope} - {variable})


def _entries(variable: int, held: dict[int, set[int]], live: dict[int, Table], sizes: Mapping[int, int]) -> int:
    result = sizes[variable]
    for other in _neighbours(variable, held, live):
        result *= sizes[other]
    return result


def _eliminate(
    variable: int, held: dict[int, set[int]], live: dict[int, Table], sizes: Mapping[int, int]
) -> tuple[int, tuple[int, ...], Array]:
    scope = (*_neighbours(variable, held, live), variable)
    joint: Array = np.zeros([sizes[v] for v in scope], np.int64)
    for number in sorted(held[variable]):
        joint += _expanded(live[number], scope)
        _replace(number, None, live, held)
    rest = scope[:-1]
    number = max(live, default=-1) + 1
    live[number] = Table(rest, joint.min(-1))
    for other in rest:
        held[other].add(number)
    return variable, rest, joint.argmin(-1)


def _expanded(table: Table, scope: tuple[int, ...]) -> Array:
    """The costs with their axes in the order of ``scope``, and axes of size 1 for the other variables."""
    order = sorted(range(len(table.scope)), key=lambda i: scope.index(table.scope[i]))
    present = set(table.scope)
    shape = iter(np.transpose(table.costs, order).shape)
    costs: Array = np.transpose(table.costs, order).reshape([next(shape) if v in present else 1 for v in scope])
    return costs


def _sliced(table: Table, variable: int) -> Table:
    axis = table.scope.index(variable)
    return Table(table.scope[:axis] + table.scope[axis + 1 :], table.costs.take(0, axis))


def _replace(number: int, table: Table | None, live: dict[int, Table], held: dict[int, set[int]]) -> None:
    for variable in live.pop(number).scope:
        held[variable].discard(number)
    if table is not None:
        live[number] = table
        for variable in table.scope:
            held[variable].add(number)
