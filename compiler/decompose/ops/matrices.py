"""Determinants, and matrices that are known when the model is built."""

from __future__ import annotations

import itertools

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes

MAX_ORDER = 10  # 252 minors at once in the widest step


@decomposes("Det")
def det(b: Builder) -> None:
    """Laplace's expansion, row by row: the minors of the first k rows over all choices of k columns come from those of k - 1."""
    order = b.x.shape[-1]
    if order > MAX_ORDER:
        raise Undecomposable(f"a determinant of order {order} has too many minors")
    count = int(np.prod(b.x.shape[:-2], dtype=np.int64))
    rows = b.reshape(b.x.name, [count, order, order])
    choices: list[tuple[int, ...]] = [(column,) for column in range(order)]
    minors = b.reshape(b.take(rows, 1, 0, 1), [count, order])
    for k in range(1, order):
        number = {choice: i for i, choice in enumerate(choices)}
        choices = list(itertools.combinations(range(order), k + 1))
        row = b.reshape(b.take(rows, 1, k, k + 1), [count, order])
        total: str | None = None
        for place in range(k + 1):
            columns = np.asarray([choice[place] for choice in choices], np.int64)
            rest = np.asarray([number[choice[:place] + choice[place + 1 :]] for choice in choices], np.int64)
            term = b.op("Mul", b.op("Gather", row, columns, axis=1), b.op("Gather", minors, rest, axis=1))
            odd = (place + k) % 2
            total = (
                (b.op("Neg", term) if odd else term) if total is None else b.op("Sub" if odd else "Add", total, term)
            )
        assert total is not None
        minors = total
    b.output(b.reshape(minors, b.y.shape))


@decomposes("EyeLike")
def eye_like(b: Builder) -> None:
    rows, columns = b.x.shape
    b.output(b.constant(np.eye(rows, columns, b.attribute("k", 0), b.y.dtype)))


@decomposes("Constant")
def constant(b: Builder) -> None:
    """What is left of a graph whose output is a constant."""
    value = b.attribute("value", None)
    if value is None:
        raise Undecomposable("it holds no tensor")
    from onnx import numpy_helper

    b.output(b.constant(numpy_helper.to_array(value)))


@decomposes("OptionalHasElement")
def optional_has_element(b: Builder) -> None:
    """A tensor is always there; an input that is left out never."""
    b.output(b.constant(np.asarray(b.operand(0) is not None)))


@decomposes("OptionalGetElement")
def optional_get_element(b: Builder) -> None:
    b.output(b.x.name)
