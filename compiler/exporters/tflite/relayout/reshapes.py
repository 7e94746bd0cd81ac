"""Which axis orders pass through a RESHAPE without moving an element."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.exporters.tflite.layout import Perm, identity

Group = tuple[tuple[int, ...], tuple[int, ...]]


def groups(before: Sequence[int], after: Sequence[int]) -> list[Group]:
    """The finest split of both shapes into runs of axes with equal products, axes of size 1 left out.

    ``[2, 6, 4] -> [12, 2, 2]`` gives ``[((0, 1), (0,)), ((2,), (1, 2))]``.
    """
    found: list[Group] = []
    left = [(axis, size) for axis, size in enumerate(before) if size != 1]
    right = [(axis, size) for axis, size in enumerate(after) if size != 1]
    while left:
        run = ([left.pop(0)], [right.pop(0)])
        products = [run[0][0][1], run[1][0][1]]
        while products[0] != products[1]:
            short = 0 if products[0] < products[1] else 1
            axis = (left, right)[short].pop(0)
            run[short].append(axis)
            products[short] *= axis[1]
        found.append((tuple(axis for axis, _ in run[0]), tuple(axis for axis, _ in run[1])))
    return found


def through(perm: Perm, before: Sequence[int], after: Sequence[int]) -> Perm | None:
    """The order in which ``after`` lies if ``before`` is stored in ``perm`` and its memory is only given a new shape.

    None where that is no order of ``after``: a run of axes that merge or split is not stored together.
    """
    if 0 in before:
        return identity(len(after)) if perm == identity(len(before)) else None
    by_first = {group[0][0]: group for group in groups(before, after)}
    rest = [axis for axis in perm if before[axis] != 1]
    moved: list[int] = []
    while rest:
        group = by_first.get(rest[0])
        if group is None or tuple(rest[: len(group[0])]) != group[0]:
            return None
        rest = rest[len(group[0]) :]
        moved += group[1]
    return _with_ones(moved, after)


def _with_ones(moved: list[int], shape: Sequence[int]) -> Perm:
    """Axes of size 1 lie anywhere: where nothing else moves they stay in place, else they come first."""
    if moved == sorted(moved):
        return identity(len(shape))
    return (*(axis for axis, size in enumerate(shape) if size == 1), *moved)
