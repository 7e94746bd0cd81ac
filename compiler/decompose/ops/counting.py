"""TfIdfVectorizer on integers: n-grams counted by comparison with every n-gram of the pool."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from compiler.decompose.builder import Array, Builder
from compiler.decompose.table import Undecomposable, decomposes


@decomposes("TfIdfVectorizer")
def tf_idf(b: Builder) -> None:
    """Source: ONNX's definition; a gram of n elements, each ``skip`` places behind the one before, counts wherever it occurs.

    Grams of one element have nothing to skip and count once, as in onnxruntime.
    """
    if b.attribute("pool_int64s", None) is None:
        raise Undecomposable("its pool holds strings")
    columns = [int(i) for i in b.attribute("ngram_indexes", [])]
    if len(set(columns)) != len(columns):
        raise Undecomposable("two of its n-grams share a column")
    width = b.y.shape[-1]
    rows = b.reshape(b.x.name, [-1, b.x.shape[-1]])
    count = int(np.prod(b.x.shape[:-1], dtype=np.int64))
    parts, sources = [b.constant(np.zeros((count, 1), np.float32))], np.zeros(width, np.int64)
    used = 1
    for first, grams in _pool(b):
        parts.append(_counts(b, rows, grams))
        for i in range(len(grams)):
            sources[columns[first + i]] = used + i
        used += len(grams)
    counted = b.op("Gather", b.op("Concat", *parts, axis=1), sources, axis=1)
    b.output(b.reshape(_weighted(b, counted, columns, width), b.y.shape))


def _pool(b: Builder) -> Iterator[tuple[int, Array]]:
    """The grams of each wanted length, [grams, length], with the number of the first; columns are numbered over all lengths."""
    pool = np.asarray(b.attribute("pool_int64s", []), np.int64)
    starts = [int(i) for i in b.attribute("ngram_counts", [])]
    number = 0
    for length, start in enumerate(starts, 1):
        end = starts[length] if length < len(starts) else len(pool)
        grams = pool[start:end].reshape(-1, length)
        if len(grams) and b.attribute("min_gram_length", 1) <= length <= b.attribute("max_gram_length", 1):
            yield number, grams
        number += len(grams)


def _counts(b: Builder, rows: str, grams: Array) -> str:
    """[rows, grams] float32."""
    length, size = grams.shape[1], b.x.shape[-1]
    total: str | None = None
    for skip in range(1 if length == 1 else b.attribute("max_skip_count", 0) + 1):
        places = size - (length - 1) * (skip + 1)
        if places < 1:
            break
        found: str | None = None
        for k in range(length):
            start = k * (skip + 1)
            element = b.op("Unsqueeze", b.take(rows, 1, start, start + places), np.asarray([2], np.int64))
            same = b.op("Equal", element, grams[:, k].reshape(1, 1, -1).astype(b.x.dtype))
            found = same if found is None else b.op("And", found, same)
        assert found is not None
        ones = b.op("Cast", found, to=TensorProto.FLOAT)
        counts = b.op("ReduceSum", ones, np.asarray([1], np.int64), keepdims=0)
        total = counts if total is None else b.op("Add", total, counts)
    if total is None:
        rows_count = int(np.prod(b.x.shape[:-1], dtype=np.int64))
        return b.constant(np.zeros((rows_count, len(grams)), np.float32))
    return total


def _weighted(b: Builder, counted: str, columns: list[int], width: int) -> str:
    weights = np.ones(width, np.float32)
    given = b.attribute("weights", None)
    if given is not None:
        weights[columns] = given
    mode = b.attribute("mode", "TF")
    if mode == "TF":
        return counted
    if mode == "IDF":
        counted = b.op("Cast", b.op("Greater", counted, b.constant(0.0, "float32")), to=TensorProto.FLOAT)
    return b.op("Mul", counted, weights)
