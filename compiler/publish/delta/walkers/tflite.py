"""TFLite: buffers and quantization vectors, found by a small flatbuffer reader.

Source: flatbuffers.dev/internals (tables, vtables, vectors); slots and types from tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

from compiler.publish.delta.walkers.base import TensorRange
from runtimes.artifact.delta.format import Kind

_SUBGRAPHS, _BUFFERS = 2, 4  # Model
_TENSORS = 0  # SubGraph
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTIZATION = 0, 1, 2, 3, 4  # Tensor
_SCALE, _AXIS = 2, 6  # QuantizationParameters
_DATA, _OFFSET, _SIZE = 0, 1, 2  # Buffer: inline data, or a place behind the flatbuffer (above 2 GB)

# TensorType; everything else (INT8, UINT8, BOOL, INT64) is compared byte by byte.
_KINDS = {
    0: Kind.ORDERED32,  # FLOAT32
    1: Kind.ORDERED16,  # FLOAT16
    18: Kind.BRAIN16,  # BFLOAT16
    17: Kind.DIFF4,  # INT4, two in each byte
    2: Kind.DIFF32,  # INT32
    15: Kind.DIFF32,  # UINT32
    7: Kind.DIFF16,  # INT16
    16: Kind.DIFF16,  # UINT16
}


class Table:
    """A flatbuffer table at ``position``. Raises struct.error or ValueError where the data does not hold together."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        self._vtable = position - _unpack("<i", data, position)
        self._slots = (_unpack("<H", data, self._vtable) - 4) // 2

    def field(self, slot: int) -> int | None:
        """Position of the field's value, or None where it has its default."""
        if slot >= self._slots:
            return None
        offset = _unpack("<H", self._data, self._vtable + 4 + 2 * slot)
        return self._position + offset if offset else None

    def scalar(self, slot: int, form: str) -> int:
        position = self.field(slot)
        return 0 if position is None else _unpack(form, self._data, position)

    def vector(self, slot: int, width: int) -> tuple[int, int]:
        """(position of the first element, number of elements); (0, 0) where absent."""
        position = self.field(slot)
        if position is None:
            return 0, 0
        start = position + _unpack("<I", self._data, position)
        count = _unpack("<I", self._data, start)
        if start + 4 + count * width > len(self._data):
            raise ValueError(f"the vector at offset {start} runs over the file's end")
        return start + 4, count

    def tables(self, slot: int) -> Iterator[Table]:
        start, count = self.vector(slot, 4)
        for position in range(start, start + 4 * count, 4):
            yield Table(self._data, position + _unpack("<I", self._data, position))

    def child(self, slot: int) -> Table | None:
        position = self.field(slot)
        return None if position is None else Table(self._data, position + _unpack("<I", self._data, position))


def _unpack(form: str, data: bytes, position: int) -> int:
    if position < 0:
        raise ValueError(f"offset {position} lies before the file")
    return int(struct.unpack_from(form, data, position)[0])


def walk_tflite(data: bytes) -> list[TensorRange]:
    """Ranges of all buffers that tensors refer to, and of the tensors' scales."""
    model = Table(data, _unpack("<I", data, 0))
    buffers = list(model.tables(_BUFFERS))
    found: dict[int, TensorRange] = {}  # by offset: tensors may share a buffer
    for graph, subgraph in enumerate(model.tables(_SUBGRAPHS)):
        for tensor in subgraph.tables(_TENSORS):
            start, size = tensor.vector(_NAME, 1)
            key = f"{graph}:{data[start : start + size].decode('utf-8', 'replace')}"
            scales = _scales(tensor, f"{key}:scale")
            if scales is not None:
                found.setdefault(scales.offset, scales)
            contents = _constant(data, tensor, buffers, key)
            if contents is not None:
                axis = (tensor.child(_QUANTIZATION) or tensor).scalar(_AXIS, "<i") if scales is not None else 0
                linked = scales is not None and axis < max(len(contents.dims), 1)
                kept = replace(contents, axis=axis, scale=f"{key}:scale") if linked else contents
                found.setdefault(contents.offset, kept)
    return list(found.values())


def _scales(tensor: Table, key: str) -> TensorRange | None:
    quantization = tensor.child(_QUANTIZATION)
    if quantization is None:
        return None
    offset, count = quantization.vector(_SCALE, 4)
    return TensorRange.of(key, offset, 4 * count, Kind.ORDERED32) if count else None


def _constant(data: bytes, tensor: Table, buffers: list[Table], key: str) -> TensorRange | None:
    buffer = tensor.scalar(_BUFFER, "<I")
    if buffer >= len(buffers):
        return None
    kind = _KINDS.get(tensor.scalar(_TYPE, "<b"), Kind.DIFF8)
    offset, size = _contents(buffers[buffer])
    start, rank = tensor.vector(_SHAPE, 4)
    dims = struct.unpack_from(f"<{rank}i", data, start)
    return TensorRange.of(f"{key}:{kind.name}", offset, size, kind, dims) if size else None


def _contents(buffer: Table) -> tuple[int, int]:
    offset, size = buffer.vector(_DATA, 1)
    return (offset, size) if size else (buffer.scalar(_OFFSET, "<Q"), buffer.scalar(_SIZE, "<Q"))
