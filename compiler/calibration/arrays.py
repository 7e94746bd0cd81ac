"""numpy files read piece by piece: an .npy, or the members of an .npz without unpacking it as a whole. Nothing is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy

from compiler.errors import DataError
from runtimes.session import Array

CHUNK_BYTES: Final = 1 << 20
_SUFFIX: Final = ".npy"
_BAD = (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def array_names(path: Path) -> tuple[str, ...]:
    """The arrays of an .npz, or the stem of an .npy. Raises DataError."""
    try:
        if not zipfile.is_zipfile(path):
            return (path.stem,)
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(_SUFFIX) for name in archive.namelist())
    except _BAD as error:
        raise _unreadable(path, error) from error


def array_rank(path: Path) -> int:
    """The number of axes of an .npy. Raises DataError."""
    try:
        with path.open("rb") as file:
            return len(_header(file)[0])
    except _BAD as error:
        raise _unreadable(path, error) from error


def read_arrays(path: Path, chunk_bytes: int | None = None) -> Iterator[tuple[str, Array]]:
    """Yield (name, rows) in pieces of about ``chunk_bytes`` along axis 0; an empty array is one empty piece.

    Raises:
        DataError: damaged, cut off, or an array of objects.
    """
    chunk_bytes = chunk_bytes or CHUNK_BYTES
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                yield from ((path.stem, rows) for rows in _rows(file, chunk_bytes))
            return
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    yield from ((name.removesuffix(_SUFFIX), rows) for rows in _rows(member, chunk_bytes))
    except _BAD as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read as numpy data: {error}",
        remedy="Save it again with numpy.savez, without object arrays.",
    )


def _rows(file: IO[bytes], chunk_bytes: int) -> Iterator[Array]:
    shape, columns_first, dtype = _header(file)
    if not shape or (columns_first and len(shape) > 1):  # nothing to cut along, or cut along another axis
        yield _whole(file, shape, columns_first, dtype)
        return
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    step = max(1, chunk_bytes // max(row_bytes, 1))
    for start in range(0, shape[0], step):
        count = min(step, shape[0] - start)
        yield np.frombuffer(_exactly(file, count * row_bytes), dtype).reshape(count, *shape[1:])
    if shape[0] == 0:
        yield np.zeros(shape, dtype)
    file.read(1)  # a member's checksum is compared at its end


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis varies fastest, dtype.

    Source: numpy.lib.format, the .npy file format (NEP 1).
    """
    version: tuple[int, int] = npy.read_magic(file)  # type: ignore[no-untyped-call]
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format is for named fields, which samples do not have")
    shape, columns_first, dtype = readers[version](file)  # type: ignore[no-untyped-call]
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    return shape, columns_first, dtype


def _whole(file: IO[bytes], shape: tuple[int, ...], columns_first: bool, dtype: np.dtype[Any]) -> Array:
    flat = np.frombuffer(_exactly(file, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize), dtype)
    return flat.reshape(shape, order="F" if columns_first else "C")


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError(f"it ends {count - len(data)} bytes early")
    return data
