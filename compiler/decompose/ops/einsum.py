"""Einsum as Transpose, Reshape, MatMul and ReduceSum.

Two operands at a time: labels are sorted into batch (in both and kept), contracted (in both and gone), left and right. Labels that
occur in one operand only and not in what follows are summed away first.
"""

from __future__ import annotations

import string

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("Einsum")
def einsum(b: Builder) -> None:
    terms, result = _parsed(b)
    sizes: dict[str, int] = {}
    operands: list[tuple[str, str]] = []
    for index, term in enumerate(terms):
        operand = b.operand(index)
        assert operand is not None
        name, labels = _diagonal(b, operand.name, term, operand.shape)
        for label, size in zip(term, operand.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
        operands.append((name, labels))
    name, labels = operands[0]
    for position, (other, other_labels) in enumerate(operands[1:], 1):
        later = set(result).union(*(set(term) for term in terms[position + 1 :]))
        name, labels = _contract(b, (name, labels), (other, other_labels), later, sizes)
    name, labels = _summed(b, name, labels, set(result))
    b.output(b.transpose(name, [labels.index(label) for label in result]) if labels != result else name)


def _parsed(b: Builder) -> tuple[list[str], str]:
    """Terms with the ellipsis replaced by letters that the equation leaves free."""
    equation = b.attribute("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    shapes = [operand.shape for operand in b.inputs if operand is not None]
    dots = max(
        (len(s) - len(t.replace("...", "")) for s, t in zip(shapes, terms, strict=True) if "..." in t), default=0
    )
    letters = "".join(free[:dots])
    expanded = []
    for index, term in enumerate(terms):
        operand = b.operand(index)
        assert operand is not None
        own = len(operand.shape) - len(term.replace("...", ""))
        expanded.append(term.replace("...", letters[dots - own :] if own else ""))
    if arrow:
        return expanded, right.replace("...", letters)
    joined = "".join(expanded)
    alone = sorted(label for label in set(joined) - set(letters) if joined.count(label) == 1)
    return expanded, letters + "".join(alone)


def _diagonal(b: Builder, name: str, labels: str, shape: tuple[int, ...]) -> tuple[str, str]:
    """A label that occurs twice in one term takes the diagonal: multiply by the identity and sum one axis away."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first, second = [i for i, one in enumerate(labels) if one == label][:2]
            eye = np.eye(shape[first], dtype=b.x.dtype).reshape(
                [size if i in (first, second) else 1 for i, size in enumerate(shape)]
            )
            name = b.op("ReduceSum", b.op("Mul", name, eye), np.asarray([second], np.int64), keepdims=0)
            labels, shape = labels[:second] + labels[second + 1 :], shape[:second] + shape[second + 1 :]
    return name, labels


def _summed(b: Builder, name: str, labels: str, keep: set[str]) -> tuple[str, str]:
    gone = [i for i, label in enumerate(labels) if label not in keep]
    if gone:
        name = b.op("ReduceSum", name, np.asarray(gone, np.int64), keepdims=0)
    return name, "".join(label for label in labels if label in keep)


def _contract(
    b: Builder, left: tuple[str, str], right: tuple[str, str], later: set[str], sizes: dict[str, int]
) -> tuple[str, str]:
    name_a, a = _summed(b, *left, later | set(right[1]))
    name_b, c = _summed(b, *right, later | set(left[1]))
    both = [label for label in a if label in c]
    batch = [label for label in both if label in later]
    inner = [label for label in both if label not in later]
    rows, columns = [x for x in a if x not in c], [x for x in c if x not in a]
    if any(sizes[label] == 0 for label in (*a, *c)):
        raise Undecomposable("an operand is empty")

    def size(labels: list[str]) -> int:
        return int(np.prod([sizes[label] for label in labels], dtype=np.int64))

    def matrix(name: str, own: str, order: list[str], shape: list[int]) -> str:
        return b.reshape(b.transpose(name, [own.index(label) for label in order]), shape)

    x = matrix(name_a, a, batch + rows + inner, [size(batch), size(rows), size(inner)])
    y = matrix(name_b, c, batch + inner + columns, [size(batch), size(inner), size(columns)])
    labels = batch + rows + columns
    return b.reshape(b.op("MatMul", x, y), [sizes[label] for label in labels]), "".join(labels)
