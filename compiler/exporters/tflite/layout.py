"""The layout model: every value remembers in which axis order its tensor is stored.

A hub value of rank r is stored as ``numpy.transpose(value, perm)``: stored axis i is hub axis ``perm[i]``. ONNX Transpose
therefore costs nothing; it only changes the perm of its output. A TRANSPOSE operator is written when an operator asks for an
order that the value is not stored in, once per value and order. Spatial operators ask for channels last, operators that mix
axes (Reshape, MatMul) for the hub's order, all others take what they find. That is good enough to write the operators down; which
order each tensor has in the file is assigned over the whole graph afterwards, see ``relayout``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Perm = tuple[int, ...]


def identity(rank: int) -> Perm:
    return tuple(range(rank))


def channels_last(rank: int) -> Perm:
    """N, spatial..., C of an N, C, spatial... value."""
    return (0, *range(2, rank), 1)


def permuted(shape: Sequence[int], perm: Perm) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in perm)


def relative(current: Perm, wanted: Perm) -> Perm:
    """The transposition that turns a tensor stored in ``current`` into ``wanted``."""
    return tuple(current.index(axis) for axis in wanted)


def moves_nothing(shape: Sequence[int], transposition: Perm) -> bool:
    """Whether the transposition only moves axes of size 1, so that a reshape does it without touching memory."""
    order = [axis for axis in transposition if shape[axis] != 1]
    return order == sorted(order)


def compose(stored: Perm, transposition: Perm) -> Perm:
    """Perm of ``transpose(value, transposition)`` if it keeps the tensor of ``value``, which is stored in ``stored``."""
    return tuple(transposition.index(axis) for axis in stored)


def without(perm: Perm, removed: Iterable[int]) -> Perm:
    """Perm after hub axes ``removed`` disappear."""
    gone = set(removed)
    kept = sorted(axis for axis in perm if axis not in gone)
    return tuple(kept.index(axis) for axis in perm if axis not in gone)


def extended(perm: Perm, rank: int) -> Perm:
    """Perm after leading hub axes of size 1 are added up to ``rank`` (ONNX aligns broadcasts at the end)."""
    added = rank - len(perm)
    return (*range(added), *(axis + added for axis in perm))


def last(perm: Perm, axis: int) -> Perm:
    """The nearest perm whose last stored axis is hub axis ``axis``."""
    return (*(a for a in perm if a != axis), axis)


def choose(candidates: Sequence[tuple[Perm, int]], rank: int) -> Perm:
    """The order for an operator that accepts any: the one that most elements already have.

    Args:
        candidates: perm and element count of each operand that is not constant. Perms of lower rank are extended.
    """
    votes: dict[Perm, int] = {}
    for perm, elements in candidates:
        if len(perm) == rank:
            votes[perm] = votes.get(perm, 0) + elements
    if not votes:
        return identity(rank)
    # Ties go to the order that is not the hub's: the operand that came from a convolution will go back to one.
    return max(votes, key=lambda perm: (votes[perm], perm != identity(rank), perm))
