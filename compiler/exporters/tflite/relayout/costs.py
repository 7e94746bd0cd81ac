"""The tables of a problem: what configs cost, and what transposes each tensor needs between its writer and its readers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from math import prod

import numpy as np

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.relayout.config import Config, Port, transposition_cost
from compiler.exporters.tflite.relayout.elimination import Table
from compiler.exporters.tflite.relayout.problem import Problem, Root

MAX_TABLE = 1 << 14  # entries; readers of a tensor with more are counted one by one
Asked = tuple[Perm, ...]  # the orders that one operator asks of a root, in the order of its ports


def tables(problem: Problem) -> tuple[list[Table], bool]:
    """Tables over the operators that have a choice, and whether they count every transpose exactly once."""
    result, exact = [], True
    for number, configs in enumerate(problem.configs):
        if len(configs) > 1 and any(config.cost for config in configs):
            result.append(Table((number,), np.asarray([config.cost for config in configs], np.int64)))
    for root in problem.roots.values():
        touching = _touching(root)
        if prod(len(set(_asked(problem, n, ports))) for n, ports in touching.items()) <= MAX_TABLE:
            result.append(_table(problem, root, touching, root.demanded))
            continue
        exact = False
        readers = {n: ports for n, ports in touching.items() if root.writer is None or n != root.writer[0]}
        writer = {n: ports for n, ports in touching.items() if n not in readers}
        result.append(_table(problem, root, writer, root.demanded))
        result += [_table(problem, root, {**writer, n: ports}, ()) for n, ports in readers.items()]
    return result, exact


def _touching(root: Root) -> dict[int, list[Port]]:
    """Writer and readers of ``root`` with their ports, each operator once."""
    found: dict[int, list[Port]] = {}
    for number, port in [*([root.writer] if root.writer else []), *root.readers]:
        found.setdefault(number, []).append(port)
    return found


def _asked(problem: Problem, number: int, ports: Sequence[Port]) -> list[Asked]:
    """Per config of an operator, what it asks of the root."""
    return [tuple(problem.order(number, port, config) for port in ports) for config in problem.configs[number]]


def _table(problem: Problem, root: Root, touching: dict[int, list[Port]], demanded: Sequence[Perm]) -> Table:
    """Counted over what operators ask, which is less than their configs, and spread over the configs after.

    An operator that asks the same whatever its config is no axis: a tensor can have more readers than an array has axes.
    """
    has_writer = root.writer is not None and root.writer[0] in touching
    asked = {number: _asked(problem, number, ports) for number, ports in touching.items()}
    kinds = {number: list(dict.fromkeys(entries)) for number, entries in asked.items()}
    scope = tuple(number for number, kind in kinds.items() if len(kind) > 1)
    small = np.zeros([len(kinds[number]) for number in scope], np.int64)
    for place in product(*(range(len(kinds[number])) for number in scope)):
        taken = dict(zip(scope, place, strict=True))
        orders = [order for number, kind in kinds.items() for order in kind[taken.get(number, 0)]]
        stored = orders.pop(0) if has_writer else layout.identity(len(root.tensor.shape))
        small[place] = copies_cost(root.tensor.shape, stored, {*orders, *demanded})
    for axis, number in enumerate(scope):
        small = small.take([kinds[number].index(entry) for entry in asked[number]], axis)
    return Table(scope, small)


def copies_cost(shape: Sequence[int], stored: Perm, wanted: Collection[Perm]) -> int:
    """What it costs to have a tensor of hub shape ``shape``, stored in one order, in all the orders ``wanted``."""
    lies = layout.permuted(shape, stored)
    return sum(transposition_cost(lies, layout.relative(stored, order)) for order in wanted)


def root_cost(problem: Problem, root: Root, chosen: Sequence[Config]) -> int:
    """What ``root`` costs if operator ``i`` runs as ``chosen[i]``."""
    orders = [problem.order(number, port, chosen[number]) for number, port in root.readers]
    stored = layout.identity(len(root.tensor.shape))
    if root.writer is not None:
        stored = problem.order(*root.writer, chosen[root.writer[0]])
    return copies_cost(root.tensor.shape, stored, {*orders, *root.demanded})


def total_cost(problem: Problem, chosen: Sequence[Config]) -> int:
    """The whole cost of a choice, each copy counted once."""
    return sum(config.cost for config in chosen) + sum(root_cost(problem, r, chosen) for r in problem.roots.values())


def descend(problem: Problem, chosen: Sequence[Config]) -> list[Config]:
    """Give one operator after another its best config until none gains: for graphs too tangled for an exact answer."""
    best = list(chosen)
    near = _roots_by_operator(problem)
    improved = True
    while improved:
        improved = False
        for number, configs in enumerate(problem.configs):

            def local(config: Config, number: int = number) -> int:
                tried = [*best[:number], config, *best[number + 1 :]]
                return config.cost + sum(root_cost(problem, root, tried) for root in near[number])

            found = min(configs, key=local)
            if local(found) < local(best[number]):
                best[number], improved = found, True
    return best


def _roots_by_operator(problem: Problem) -> list[list[Root]]:
    near: list[list[Root]] = [[] for _ in problem.operations]
    for root in problem.roots.values():
        for number in _touching(root):
            near[number].append(root)
    return near
