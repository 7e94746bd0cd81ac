"""ONNX: a scan of the protobuf wire format, because a parser would lose the offsets.

Source: protobuf.dev/programming-guides/encoding; field numbers from onnx/onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from compiler.publish.delta.walkers.base import TensorRange
from runtimes.artifact.delta.format import Kind

MAX_DEPTH = 16

_GRAPH = 7  # ModelProto.graph
_NODE, _INITIALIZER = 1, 5  # GraphProto
_NODE_INPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 1, 4, 5  # NodeProto
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 1, 3, 5, 6  # AttributeProto
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA = 1, 2, 8, 13  # TensorProto
# Packed float_data has the elements' own bytes, like raw_data; int32_data, int64_data and uint64_data are varints, and
# double_data is compared byte by byte.
_FLOAT_DATA, _RAW_DATA, _BYTEWISE_DATA = 4, 9, (5, 7, 10, 11)
_ENTRY_KEY, _ENTRY_VALUE = 1, 2  # StringStringEntryProto

# TensorProto.DataType; everything else is compared byte by byte.
_KINDS = {
    1: Kind.ORDERED32,  # FLOAT
    10: Kind.ORDERED16,  # FLOAT16
    16: Kind.BRAIN16,  # BFLOAT16
    21: Kind.DIFF4,  # UINT4, two in each byte
    22: Kind.DIFF4,  # INT4
    4: Kind.DIFF16,  # UINT16
    5: Kind.DIFF16,  # INT16
    6: Kind.DIFF32,  # INT32
    12: Kind.DIFF32,  # UINT32
}


# Name of a file of external data -> (where its bytes begin in the walked data, how many there are).
Files = Mapping[str, tuple[int, int]]


def walk_onnx(data: bytes, start: int = 0, end: int | None = None, files: Files | None = None) -> list[TensorRange]:
    """Tensors of the graph, its subgraphs and its attributes; external ones where ``files`` holds them.

    Raises ValueError or IndexError for damaged input.
    """
    walk = _Walk(data, files or {})
    for number, low, high in fields(data, start, len(data) if end is None else end):
        if number == _GRAPH:
            walk.graph(low, high, "", MAX_DEPTH)
    return [walk.linked(item) for item in walk.found]


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of the value of every field between ``start`` and ``end``."""
    position = start
    while position < end:
        tag, position = varint(data, position)
        value = position
        match tag & 7:
            case 2:
                size, value = varint(data, position)
                position = value + size
            case 0:
                _, position = varint(data, position)
            case 1:
                position += 8
            case 5:
                position += 4
            case other:
                raise ValueError(f"wire type {other} at offset {value}")
        if position > end:
            raise ValueError(f"the field at offset {value} runs over its message's end")
        yield tag >> 3, value, position


def varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, position after it). Raises ValueError above ten bytes, IndexError at the end of the data."""
    value = data[position]
    if value < 0x80:  # nearly always
        return value, position + 1
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a varint before offset {position} is too long")


class _Walk:
    """Collects ranges, and which initializer scales which (DequantizeLinear), by the names that the nodes use."""

    def __init__(self, data: bytes, files: Files) -> None:
        self.found: list[TensorRange] = []
        self._data, self._files = data, files
        self._names: dict[str, str] = {}  # name of an initializer -> key
        self._scales: dict[str, tuple[str, int]] = {}  # key of codes -> (name of their scale, axis)
        self._dequantized: list[tuple[str, str, int]] = []

    def linked(self, item: TensorRange) -> TensorRange:
        """``item`` with its scale and axis, if a DequantizeLinear reads it."""
        if not self._scales:
            for codes, scale, axis in self._dequantized:
                self._scales.setdefault(self._names.get(codes, ""), (self._names.get(scale, ""), axis))
        scale, axis = self._scales.get(item.key, ("", 0))
        rank = max(len(item.dims), 1)
        return replace(item, scale=scale, axis=axis % rank) if scale and -rank <= axis < rank else item

    def graph(self, start: int, end: int, prefix: str, depth: int) -> None:
        if not depth:
            raise ValueError("graphs are nested too deep")
        for index, (number, low, high) in enumerate(fields(self._data, start, end)):
            if number == _INITIALIZER:
                self._tensor(low, high, f"{prefix}initializer")
            elif number == _NODE:
                self._node(low, high, f"{prefix}{index}/", depth)

    def _node(self, start: int, end: int, prefix: str, depth: int) -> None:
        inputs: list[str] = []
        op_type, axis = "", 1  # the axis' default, ONNX's DequantizeLinear
        for number, low, high in fields(self._data, start, end):
            if number == _NODE_INPUT:
                inputs.append(self._text(low, high))
            elif number == _NODE_OP_TYPE:
                op_type = self._text(low, high)
            elif number == _NODE_ATTRIBUTE:
                axis = self._attribute(low, high, prefix, depth, axis)
        if op_type == "DequantizeLinear" and len(inputs) > 1:
            self._dequantized.append((inputs[0], inputs[1], axis))

    def _attribute(self, start: int, end: int, prefix: str, depth: int, axis: int) -> int:
        """Walks what the attribute holds. Returns its value if it is the node's axis, else ``axis``."""
        name = ""
        for number, low, high in fields(self._data, start, end):
            if number == _ATTRIBUTE_NAME:
                name = self._text(low, high)
            elif number == _ATTRIBUTE_INT and name == "axis":
                value = varint(self._data, low)[0]
                axis = value - (1 << 64) if value >> 63 else value
            elif number == _ATTRIBUTE_TENSOR:
                self._tensor(low, high, prefix)
            elif number == _ATTRIBUTE_GRAPH:
                self.graph(low, high, prefix, depth - 1)
        return axis

    def _tensor(self, start: int, end: int, prefix: str) -> None:
        name, data_type = "", 0
        dims: list[int] = []
        typed: list[tuple[int, int]] = []
        bytewise: list[tuple[int, int]] = []
        external: dict[str, str] = {}
        for number, low, high in fields(self._data, start, end):
            if number == _NAME:
                name = self._text(low, high)
            elif number == _DATA_TYPE:
                data_type = varint(self._data, low)[0]
            elif number == _DIMS:
                dims.append(varint(self._data, low)[0])
            elif number in (_RAW_DATA, _FLOAT_DATA):
                typed.append((low, high))
            elif number in _BYTEWISE_DATA:
                bytewise.append((low, high))
            elif number == _EXTERNAL_DATA:
                external |= self._entry(low, high)
        kind = _KINDS.get(data_type, Kind.DIFF8)
        key = f"{prefix}:{name}:{kind.name}"
        self._names.setdefault(name, key)
        typed += self._external(external)
        self.found += [TensorRange.of(key, low, high - low, kind, tuple(dims)) for low, high in typed]
        self.found += [TensorRange.of(key, low, high - low, Kind.DIFF8) for low, high in bytewise]

    def _entry(self, start: int, end: int) -> dict[str, str]:
        parts = {number: self._text(low, high) for number, low, high in fields(self._data, start, end)}
        return {parts.get(_ENTRY_KEY, ""): parts.get(_ENTRY_VALUE, "")}

    def _external(self, entries: dict[str, str]) -> list[tuple[int, int]]:
        """Where a tensor's external data lies. Source: onnx.proto3, TensorProto.external_data."""
        place = self._files.get(entries.get("location", ""))
        if place is None:
            return []
        start, size = place
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"external data of {length} bytes at {offset} runs over its file's end")
        return [(start + offset, start + offset + length)]

    def _text(self, start: int, end: int) -> str:
        return self._data[start:end].decode("utf-8", "replace")
