"""Stored zips: the blobs of a Core ML package's weight.bin, and ONNX models with external data.

Source: MILBlob/Blob/StorageFormat.hpp in coremltools: a 64-byte storage header (count u32, version u32), then per blob a
64-byte, 64-byte aligned record (sentinel u32, type u32, bytes u64, offset of the data u64) followed by its aligned data.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator

from compiler.publish.delta.walkers.base import TensorRange
from compiler.publish.delta.walkers.onnx import walk_onnx
from runtimes.artifact.delta.format import Kind

_SENTINEL = 0xDEADBEEF
_ALIGN = 64
_RECORD = struct.Struct("<IIQQ")
_LOCAL_NAME_LENGTH = 26  # offset of the two lengths in a zip's local header, which is 30 bytes long

# BlobDataType; everything else is compared byte by byte.
_KINDS = {
    1: Kind.ORDERED16,  # Float16
    2: Kind.ORDERED32,  # Float32
    5: Kind.BRAIN16,  # BFloat16
    8: Kind.DIFF4,  # Int4, two in each byte
    11: Kind.DIFF4,  # UInt4
    6: Kind.DIFF16,  # Int16
    7: Kind.DIFF16,  # UInt16
    14: Kind.DIFF32,  # Int32
    15: Kind.DIFF32,  # UInt32
}


def walk_zip(data: bytes) -> list[TensorRange]:
    """Blobs of every stored ``weight.bin``, tensors of every stored ``.onnx`` with the external data beside it.

    Raises ValueError for a zip that does not hold together.
    """
    entries = list(_stored_entries(data))
    places = {name: (start, size) for name, start, size in entries}
    found: list[TensorRange] = []
    for name, start, size in entries:
        if name.endswith("weight.bin"):
            found.extend(_blobs(data, start, size, name))
        elif name.endswith(".onnx"):
            folder = name[: name.rfind("/") + 1]
            beside = {n.removeprefix(folder): place for n, place in places.items() if n.startswith(folder)}
            found.extend(walk_onnx(data, start, start + size, beside))
    return found


def _stored_entries(data: bytes) -> Iterator[tuple[str, int, int]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(str(error)) from error
    for info in entries:
        if info.compress_type == zipfile.ZIP_STORED:
            name, extra = struct.unpack_from("<HH", data, info.header_offset + _LOCAL_NAME_LENGTH)
            yield info.filename, info.header_offset + 30 + name + extra, info.file_size


def _blobs(data: bytes, start: int, size: int, entry: str) -> Iterator[TensorRange]:
    """Blobs have no names: their order and size tell which is which."""
    count = struct.unpack_from("<I", data, start)[0]
    position = _ALIGN
    for index in range(count):
        if position + _RECORD.size > size:
            raise ValueError(f"blob {index} of {entry} lies behind its end")
        sentinel, data_type, blob_size, offset = _RECORD.unpack_from(data, start + position)
        if sentinel != _SENTINEL or offset + blob_size > size:
            raise ValueError(f"blob {index} of {entry} has no valid record")
        kind = _KINDS.get(data_type, Kind.DIFF8)
        yield TensorRange.of(f"{entry}:{index}:{kind.name}", start + offset, blob_size, kind)
        position = -(-(offset + blob_size) // _ALIGN) * _ALIGN
