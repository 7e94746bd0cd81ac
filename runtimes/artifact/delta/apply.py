"""Applying a delta: base + patch -> result, streamed in bounded memory, whole and verified or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from runtimes.artifact.delta.codecs import Decoder, Source, codec_by_id, damaged
from runtimes.artifact.delta.contexts import contexts
from runtimes.artifact.delta.format import (
    HEADER,
    MAX_STREAMS,
    ORDERED,
    STREAM,
    WIDTH,
    Header,
    Kind,
    Segment,
    stream_id,
    unpack_header,
    unpack_segments,
)
from runtimes.artifact.delta.residuals import Words, decode, words
from runtimes.artifact.delta.tokens import BitReader
from runtimes.artifact.files import atomic_write, sha256_file
from runtimes.errors import DeltaBaseMismatch, DeltaError, StorageError

CHUNK_BYTES = 1 << 15  # a multiple of every element width


def read_header(patch: Path) -> Header:
    """What a patch says about itself (sizes, digests, codecs, memory), checked against caps. Raises DeltaError."""
    with _open(patch) as file:
        return _read_header(file, patch.stat().st_size)


def apply_delta(base: Path, patch: Path, destination: Path, *, max_result_bytes: int) -> str:
    """Write base + patch to ``destination``, atomically and durably.

    Args:
        base: the file that the patch was made from; may be ``destination`` itself.
        max_result_bytes: most bytes that the result may have; a larger promise is refused before anything is written.

    Returns:
        Hex SHA-256 of the result, equal to the one in the patch.

    Raises:
        DeltaBaseMismatch: ``base`` is not the file that the patch was made from.
        DeltaError: the patch is damaged, hostile, unreadable, or makes too large a result.
        StorageError: the destination cannot be written.
        In every case ``destination`` is as it was.
    """
    with ExitStack() as stack:
        patch_file = stack.enter_context(_open(patch))
        header = _read_header(patch_file, patch.stat().st_size)
        if header.result_size > max_result_bytes:
            raise damaged(f"its result has {header.result_size} bytes, at most {max_result_bytes} are allowed")
        _check_base(base, header)
        segments = unpack_segments(_read_at(patch_file, header.size_bytes, header.table_bytes), header)
        decoders = _decoders(header, patch_file)
        base_file = stack.enter_context(_open(base))
        digest = hashlib.sha256()
        with atomic_write(destination) as sink:
            for chunk in _result(segments, base_file, decoders):
                digest.update(chunk)
                sink.write(chunk)
            if digest.hexdigest() != header.result_sha256:
                raise damaged("the result's digest is not the promised one")
    return digest.hexdigest()


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DeltaError(f"Cannot read {path}: {error.strerror or error}.", remedy="Check the path.") from error


def _read_header(file: IO[bytes], size: int) -> Header:
    return unpack_header(file.read(HEADER.size + STREAM.size * MAX_STREAMS), size)


def _check_base(base: Path, header: Header) -> None:
    try:
        matches = base.stat().st_size == header.base_size and sha256_file(base) == header.base_sha256
    except OSError as error:
        raise StorageError(f"Cannot read {base}: {error.strerror or error}.", remedy="Check the path.") from error
    if not matches:
        raise DeltaBaseMismatch(
            f"{base} is not the file that the delta was made from (SHA-256 {header.base_sha256}).",
            remedy="Take a delta made for this file, or the full artifact.",
        )


def _decoders(header: Header, patch: IO[bytes]) -> dict[int, Decoder]:
    decoders: dict[int, Decoder] = {}
    offset = header.size_bytes + header.table_bytes
    for row in header.streams:
        decoders[row.stream] = codec_by_id(row.codec).decoder(_section(patch, offset, row.stored_bytes), row.params)
        offset += row.stored_bytes
    return decoders


def _section(file: IO[bytes], start: int, size: int) -> Source:
    """A reader of one stream's bytes; the streams share the file, so each keeps its own position."""
    position, end = start, start + size

    def read(count: int) -> bytes:
        nonlocal position
        data = _read_at(file, position, min(count, end - position))
        position += len(data)
        return data

    return read


def _read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise damaged(f"{size} bytes were expected at offset {offset}, {len(data)} are there")
    return data


def _result(segments: list[Segment], base: IO[bytes], decoders: dict[int, Decoder]) -> Iterator[bytes]:
    residuals = {kind: _Residuals(kind, decoders) for kind in {segment.kind for segment in segments} & WIDTH.keys()}
    for segment in segments:
        make = _maker(segment.kind, base, decoders, residuals)
        for start in range(0, segment.size, CHUNK_BYTES):
            yield make(segment.base + start, min(CHUNK_BYTES, segment.size - start))


def _maker(
    kind: Kind, base: IO[bytes], decoders: dict[int, Decoder], residuals: dict[Kind, _Residuals]
) -> Callable[[int, int], bytes]:
    """A function from (offset in the base, bytes of the result) to those bytes, for the next segment of its kind."""
    if kind is Kind.COPY:
        return lambda offset, size: _read_at(base, offset, size)
    if kind is Kind.LITERAL:
        return lambda _offset, size: decoders[stream_id(kind)].read(size)
    reader = residuals[kind]
    reader.next_segment()

    def residual(offset: int, size: int) -> bytes:
        before = words(_read_at(base, offset, size), kind)
        return decode(before, reader.read(before), kind).tobytes()

    return residual


class _Residuals:
    """Reads one kind's residuals: tokens in the context of the base, and the extra bits of elements wider than a byte."""

    def __init__(self, kind: Kind, decoders: dict[int, Decoder]) -> None:
        self._kind = kind
        self._tokens = decoders[stream_id(kind)]
        extra = decoders.get(stream_id(kind, 1))
        self._bits = BitReader(extra.read if extra else _nothing, damaged)
        self._index = -1

    def next_segment(self) -> None:
        self._index += 1

    def read(self, before: Words) -> Words:
        tokens = self._tokens.read(len(before), contexts(before, self._index, floats=self._kind in ORDERED))
        if WIDTH[self._kind] == 1:
            return words(tokens, self._kind)
        return self._bits.join(tokens, WIDTH[self._kind])


def _nothing(size: int) -> bytes:
    if size:
        raise damaged("tokens ask for extra bits, of which there is no stream")
    return b""
