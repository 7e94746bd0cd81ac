"""TensorScatter: rows written into a cache at a place of their own per batch element."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from compiler.decompose.builder import Builder
from compiler.decompose.table import decomposes


@decomposes("TensorScatter")
def tensor_scatter(b: Builder) -> None:
    """Read backwards: place j of the cache takes row j - w of the update if there is one, else what it held.

    Source: ONNX's definition (opset 24); ``circular`` counts modulo the cache's length.
    """
    update, starts = b.operand(1), b.operand(2)
    assert update is not None
    rank = len(b.x.shape)
    axis = b.attribute("axis", -2) % rank
    batch, length, rows = b.x.shape[0], b.x.shape[axis], update.shape[axis]
    start = b.constant(np.zeros(batch, np.int64)) if starts is None else b.op("Cast", starts.name, to=TensorProto.INT64)
    place = b.op("Sub", np.arange(length, dtype=np.int64)[None], b.reshape(start, [batch, 1]))
    if b.attribute("mode", "linear") == "circular":
        place = b.op("Mod", place, np.asarray(length, np.int64))
    known = b.op("And", b.op("Less", np.asarray(-1), place), b.op("Less", place, np.asarray(rows)))
    row = b.op("Add", b.op("Where", known, place, np.asarray(0)), (np.arange(batch, dtype=np.int64) * rows)[:, None])
    order = [0, axis, *(i for i in range(1, rank) if i != axis)]
    others = [b.x.shape[i] for i in order[2:]]
    flat = b.reshape(b.transpose(update.name, order), [batch * rows, *others])
    moved = b.transpose(b.op("Gather", flat, row, axis=0), [order.index(i) for i in range(rank)])
    mask = b.reshape(known, [batch, *(length if i == axis else 1 for i in range(1, rank))])
    b.output(b.op("Where", mask, moved, b.x.name))
