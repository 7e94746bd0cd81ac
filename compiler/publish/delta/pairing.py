"""Which tensor of the base a tensor of the new file comes from: by name, else by content, else by shape and likeness."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from compiler.publish.delta.walkers import TensorRange
from runtimes.artifact.delta.residuals import encode, words

SAMPLE_ELEMENTS = 1024  # compared when shapes leave several to choose from
MOST_COMPARED = 64

Pairs = dict[int, TensorRange]  # offset of the new tensor -> old tensor


def paired(base: bytes, new: bytes, old_tensors: list[TensorRange], new_tensors: list[TensorRange]) -> Pairs:
    """Every old tensor is given away by name once; tensors of the same bytes, and of likeness, follow for what is left."""
    pairs: Pairs = {}
    by_key = {(tensor.key, tensor.size): tensor for tensor in old_tensors}
    for tensor in new_tensors:
        old = by_key.get((tensor.key, tensor.size))
        if old is not None and old.kind is tensor.kind:
            pairs[tensor.offset] = old
    _by_content(base, new, old_tensors, (t for t in new_tensors if t.offset not in pairs), pairs)
    taken = {old.offset for old in pairs.values()}
    _by_shape(base, new, [t for t in old_tensors if t.offset not in taken], new_tensors, pairs)
    return pairs


def _by_content(
    base: bytes, new: bytes, old_tensors: list[TensorRange], missing: Iterable[TensorRange], pairs: Pairs
) -> None:
    digests: dict[bytes, TensorRange] = {}
    for tensor in missing:
        if not digests:
            digests = {_digest(base, old): old for old in reversed(old_tensors)}
        old = digests.get(_digest(new, tensor))
        if old is not None:
            pairs[tensor.offset] = old


def _digest(data: bytes, tensor: TensorRange) -> bytes:
    return hashlib.sha256(memoryview(data)[tensor.offset : tensor.offset + tensor.size]).digest()


def _by_shape(base: bytes, new: bytes, free: list[TensorRange], new_tensors: list[TensorRange], pairs: Pairs) -> None:
    """The most similar free tensor of the same kind and size, in the new file's order."""
    shelves: dict[tuple[int, int], list[TensorRange]] = defaultdict(list)
    for old in free:
        shelves[old.kind, old.size].append(old)
    for tensor in new_tensors:
        shelf = shelves[tensor.kind, tensor.size]
        if tensor.offset in pairs or not shelf:
            continue
        distances = [_distance(base, new, old, tensor) for old in shelf[:MOST_COMPARED]]
        pairs[tensor.offset] = shelf.pop(int(np.argmin(distances)))


def _distance(base: bytes, new: bytes, old: TensorRange, tensor: TensorRange) -> float:
    """Mean logarithm of the residuals of a sample."""
    before, after = (
        words(memoryview(data)[t.offset : t.offset + t.size], t.kind) for data, t in ((base, old), (new, tensor))
    )
    step = max(1, len(before) // SAMPLE_ELEMENTS)
    residuals = encode(before[::step], after[::step], tensor.kind)
    return float(np.log2(residuals.astype(np.float64) + 1).mean())
