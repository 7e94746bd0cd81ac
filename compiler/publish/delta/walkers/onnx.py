"""ONNX: a scan of the protobuf wire format, because a parser would lose the offsets.

Source: protobuf.dev/programming-guides/encoding; field numbers from onnx/onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

from compiler.publish.delta.walkers.base import TensorRange
from runtimes.artifact.delta.format import Kind

MAX_DEPTH = 16

_GRAPH = 7  # ModelProto.graph
_NODE, _INITIALIZER = 1, 5  # GraphProto
_NODE_ATTRIBUTE = 5  # NodeProto.attribute
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6  # AttributeProto.t, .g
_DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA = 2, 4, 8, 9  # TensorProto

# TensorProto.DataType; everything else is compared byte by byte.
_KINDS = {
    1: Kind.ORDERED32,  # FLOAT
    10: Kind.ORDERED16,  # FLOAT16
    16: Kind.ORDERED16,  # BFLOAT16
    4: Kind.DIFF16,  # UINT16
    5: Kind.DIFF16,  # INT16
    6: Kind.DIFF32,  # INT32
    12: Kind.DIFF32,  # UINT32
}


def walk_onnx(data: bytes) -> list[TensorRange]:
    """Tensors of the graph, its subgraphs and its attributes. Raises ValueError or IndexError for damaged input."""
    found: list[TensorRange] = []
    for number, start, end in fields(data, 0, len(data)):
        if number == _GRAPH:
            found.extend(_graph(data, start, end, "", MAX_DEPTH))
    return found


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of the value of every field between ``start`` and ``end``."""
    position = start
    while position < end:
        tag, position = varint(data, position)
        value = position
        match tag & 7:
            case 0:
                _, position = varint(data, position)
            case 1:
                position += 8
            case 2:
                size, value = varint(data, position)
                position = value + size
            case 5:
                position += 4
            case other:
                raise ValueError(f"wire type {other} at offset {value}")
        if position > end:
            raise ValueError(f"the field at offset {value} runs over its message's end")
        yield tag >> 3, value, position


def varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, position after it). Raises ValueError above ten bytes, IndexError at the end of the data."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a varint before offset {position} is too long")


def _graph(data: bytes, start: int, end: int, prefix: str, depth: int) -> Iterator[TensorRange]:
    if not depth:
        raise ValueError("graphs are nested too deep")
    for index, (number, low, high) in enumerate(fields(data, start, end)):
        if number == _INITIALIZER:
            yield from _tensor(data, low, high, f"{prefix}initializer")
        elif number == _NODE:
            yield from _node(data, low, high, f"{prefix}{index}/", depth)


def _node(data: bytes, start: int, end: int, prefix: str, depth: int) -> Iterator[TensorRange]:
    for number, low, high in fields(data, start, end):
        if number != _NODE_ATTRIBUTE:
            continue
        for inner, first, last in fields(data, low, high):
            if inner == _ATTRIBUTE_TENSOR:
                yield from _tensor(data, first, last, prefix)
            elif inner == _ATTRIBUTE_GRAPH:
                yield from _graph(data, first, last, prefix, depth - 1)


def _tensor(data: bytes, start: int, end: int, prefix: str) -> Iterator[TensorRange]:
    name, data_type = "", 0
    ranges: list[tuple[int, int]] = []
    for number, low, high in fields(data, start, end):
        if number == _NAME:
            name = data[low:high].decode("utf-8", "replace")
        elif number == _DATA_TYPE:
            data_type = varint(data, low)[0]
        elif number in (_RAW_DATA, _FLOAT_DATA):
            ranges.append((low, high))
    kind = _KINDS.get(data_type, Kind.DIFF8)
    for low, high in ranges:
        yield TensorRange.of(f"{prefix}:{name}:{kind.name}", low, high - low, kind)
