"""Samples on disk: what a dataset holds when memory should not grow with their number.

A Spool takes samples chunk by chunk, keeps the first few MiB in memory and writes everything to an unnamed temporary file once
there is more. What it gives back reads only what is sliced. Files are read with pread, not mapped: mapped pages would count as
the process's memory until the system wants them back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from typing import IO, Any, Final

import numpy as np

from compiler.errors import DataError
from runtimes.session import Array, SampleKey, Samples

IN_MEMORY_BYTES: Final = 32 << 20  # per input; small data stays in memory


class Spool:
    """Collects one input's samples; ``samples`` gives them back."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit = IN_MEMORY_BYTES if limit_bytes is None else limit_bytes
        self._parts: list[Array] = []
        self._held = 0
        self._file: IO[bytes] | None = None
        self._count = 0
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] = np.dtype(np.float32)

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Array) -> None:
        """Take ``rows`` [count, ...]; every call with the same dtype and sample shape.

        Raises:
            DataError: the temporary file cannot be written.
        """
        self._shape, self._dtype = rows.shape[1:], rows.dtype
        self._count += len(rows)
        if self._file is None and self._held + rows.nbytes <= self._limit:
            self._parts.append(np.array(rows))  # a copy: the caller may fill its buffer anew
            self._held += rows.nbytes
            return
        if self._file is None:
            self._open()
        self._write(rows)

    def samples(self) -> Samples:
        """Everything that was appended; nothing more may be."""
        if self._file is None:
            return np.concatenate(self._parts) if self._parts else np.zeros((0, *self._shape), self._dtype)
        self._file.flush()
        return StoredSamples(self._file, self._dtype, (self._count, *self._shape))

    def _open(self) -> None:
        try:
            # Unnamed on Linux: it goes away with the process, however that ends.
            self._file = tempfile.TemporaryFile(prefix="edgewright-samples-")  # noqa: SIM115
        except OSError as error:
            raise _no_room(error) from error
        for part in self._parts:
            self._write(part)
        self._parts, self._held = [], 0

    def _write(self, rows: Array) -> None:
        assert self._file is not None
        try:
            self._file.write(np.ascontiguousarray(rows).data)
        except OSError as error:
            raise _no_room(error) from error


def _no_room(error: OSError) -> DataError:
    return DataError(
        f"The samples do not fit the temporary folder {tempfile.gettempdir()}: {error.strerror}.",
        remedy="Point TMPDIR at a larger disk, or give fewer samples.",
    )


class _Lazy:
    """Shared by samples that are read when sliced. ``shape``: samples on axis 0."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self._shape)

    def __len__(self) -> int:
        return self._shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All samples in memory, for callers that cannot do with less."""
        if copy is False:
            raise ValueError("samples on disk cannot become an array without a copy")
        return self[:].astype(dtype or self._dtype, copy=False)

    def __getitem__(self, key: SampleKey) -> Array:
        """Samples by slice, or by a sequence of positions."""
        return self._rows(positions(key, len(self)))

    def _rows(self, wanted: Sequence[int]) -> Array:
        raise AssertionError("every subclass reads")


def positions(key: SampleKey, count: int) -> Sequence[int]:
    """The positions that ``key`` picks among ``count`` samples; a mask of booleans picks where it is true."""
    if isinstance(key, slice):
        return range(*key.indices(count))
    chosen = np.asarray(key)
    found = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
    if len(found) and not -count <= int(found.min()) <= int(found.max()) < count:
        raise IndexError(f"positions reach beyond {count} samples")
    return [int(i) % count for i in found]


class StoredSamples(_Lazy):
    """Samples in a file, one after another from its beginning."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        super().__init__(dtype, shape)
        self._file = file  # held open: it has no name to be opened by again
        self._bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize

    def _rows(self, wanted: Sequence[int]) -> Array:
        rows = np.empty((len(wanted), *self._shape[1:]), self._dtype)
        flat = rows.reshape(len(wanted), -1).view(np.uint8) if rows.size else np.zeros((0, 0), np.uint8)
        for start, stop in _runs(wanted):
            self._fill(flat[start:stop], wanted[start] * self._bytes)
        return rows

    def _fill(self, buffer: Array, offset: int) -> None:
        view, done = buffer.reshape(-1).data, 0
        while done < len(view):  # one call reads at most 2 GiB
            got = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            if got <= 0:
                raise DataError("The stored samples ended early.", remedy="Run again; is the disk full?")
            done += got


def _runs(wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Stretches of ``wanted`` whose positions follow one another, as (start, stop)."""
    if not wanted:
        return []
    breaks = np.flatnonzero(np.diff(np.asarray(wanted)) != 1) + 1
    edges = [0, *breaks.tolist(), len(wanted)]
    return list(pairwise(edges))


class ChosenSamples(_Lazy):
    """Some of ``base``'s samples, in the order of ``chosen``."""

    def __init__(self, base: Samples, chosen: Sequence[int]) -> None:
        super().__init__(base.dtype, (len(chosen), *base.shape[1:]))
        self._base, self._chosen = base, np.asarray(chosen, np.int64)

    def _rows(self, wanted: Sequence[int]) -> Array:
        return self._base[self._chosen[np.asarray(wanted, np.int64)].tolist()]


class TurnedSamples(_Lazy):
    """``base`` with the axes of every sample in another order; ``order`` names all axes, 0 first."""

    def __init__(self, base: Samples, order: tuple[int, ...]) -> None:
        super().__init__(base.dtype, tuple(base.shape[axis] for axis in order))
        self._base, self._order = base, order

    def _rows(self, wanted: Sequence[int]) -> Array:
        return np.ascontiguousarray(self._base[list(wanted)].transpose(self._order))


def chosen_samples(base: Samples, chosen: Sequence[int]) -> Samples:
    """Some of ``base``'s samples, read when they are needed; of an array in memory a copy."""
    return base[chosen] if isinstance(base, np.ndarray) else ChosenSamples(base, chosen)


def turned_samples(base: Samples, order: tuple[int, ...]) -> Samples:
    """``base`` with its axes in ``order``."""
    return np.ascontiguousarray(base.transpose(order)) if isinstance(base, np.ndarray) else TurnedSamples(base, order)
