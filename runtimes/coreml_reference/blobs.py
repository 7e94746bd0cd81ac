"""weights/weight.bin: Core ML's blob file, version 2, read in place through a memory map.

    file header, 64 bytes    uint32 count, uint32 version (2), 56 reserved
    then per blob, aligned to 64 bytes:
    metadata, 64 bytes       uint32 0xDEADBEEF, uint32 type, uint64 size, uint64 data offset, uint64 padding bits, 32 reserved
    data

A ``BlobFileValue.offset`` in the program points to the metadata.

Source: MILBlob/Blob/StorageFormat.hpp in apple/coremltools (header layout, sentinel, BlobDataType numbers).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from runtimes.coreml_reference.types import DType, decode, stored_bytes
from runtimes.errors import ModelLoadError
from runtimes.session import Array

_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQQ32x")
_SENTINEL = 0xDEADBEEF
_VERSION = 2
_REMEDY = "Export or copy the package again; its weight file is damaged."

# BlobDataType, in MILBlob's numbering, to MIL.proto's names.
_BLOB_TYPES: dict[int, str] = {
    1: "FLOAT16",
    2: "FLOAT32",
    3: "UINT8",
    4: "INT8",
    6: "INT16",
    7: "UINT16",
    8: "INT4",
    9: "UINT1",
    10: "UINT2",
    11: "UINT4",
    12: "UINT3",
    13: "UINT6",
    14: "INT32",
    15: "UINT32",
}


class BlobFile:
    """One open weight file. Arrays returned by ``read`` keep the map alive.

    Raises:
        ModelLoadError: the file is missing, too short, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            with path.open("rb") as file:
                self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
            raise ModelLoadError(f"Weight file {path}: {error}.", remedy=_REMEDY) from error
        if len(self._data) < _HEADER.size:
            raise self._damaged(0, f"{len(self._data)} bytes, the header alone takes {_HEADER.size}")
        _count, version = _HEADER.unpack_from(self._data, 0)
        if version != _VERSION:
            raise self._damaged(4, f"version {version}, expected {_VERSION}")

    def read(self, offset: int, dtype: DType, shape: tuple[int, ...]) -> Array:
        """The blob whose metadata stands at ``offset``, as declared by the program.

        Raises:
            ModelLoadError: offsets leave the file, or type or size differ from what the program declares.
        """
        if offset < _HEADER.size or offset + _METADATA.size > len(self._data):
            raise self._damaged(offset, f"the blob's metadata leaves the file of {len(self._data)} bytes")
        sentinel, kind, size, start, _padding = _METADATA.unpack_from(self._data, offset)
        if sentinel != _SENTINEL:
            raise self._damaged(offset, f"sentinel {sentinel:#x}, expected {_SENTINEL:#x}")
        if start + size > len(self._data):
            raise self._damaged(offset, f"{size} bytes at {start} leave the file of {len(self._data)} bytes")
        stored = _BLOB_TYPES.get(kind, f"blob type {kind}")
        # The writer has no boolean blob: MIL stores BOOL tensors as uint8.
        if stored != dtype.name and not (dtype.name == "BOOL" and stored == "UINT8"):
            raise self._damaged(offset, f"holds {stored}, the program declares {dtype.name}")
        if size != stored_bytes(dtype, shape):
            raise self._damaged(offset, f"{size} bytes stored, {dtype.name}{list(shape)} needs another number")
        try:
            return decode(self._data[start : start + size], dtype, shape)
        except ValueError as error:
            raise self._damaged(offset, str(error)) from error

    def _damaged(self, offset: int, what: str) -> ModelLoadError:
        return ModelLoadError(f"Weight file {self._name}, offset {offset}: {what}.", remedy=_REMEDY)
