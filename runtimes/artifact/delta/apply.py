"""Applying a delta: base + patch -> result, streamed in bounded memory, whole and verified or not at all."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from runtimes.artifact.delta.codecs import Decoder, Source, codec_by_id, damaged
from runtimes.artifact.delta.decoding import Decoding, read_at
from runtimes.artifact.delta.format import HEADER, MAX_STREAMS, STREAM, Header, unpack_header, unpack_segments
from runtimes.artifact.files import atomic_write, sha256_file
from runtimes.errors import DeltaBaseMismatch, DeltaError, StorageError


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
        segments = unpack_segments(read_at(patch_file, header.size_bytes, header.table_bytes), header)
        decoders = _decoders(header, patch_file)
        base_file = stack.enter_context(_open(base))
        with atomic_write(destination) as sink:
            sink.truncate(header.result_size)
            for position, chunk in Decoding(segments, base_file, sink, decoders).chunks():
                sink.seek(position)
                sink.write(chunk)
            # Segments need not come in the file's order, so the digest is taken when all are there.
            sink.seek(0)
            digest = hashlib.file_digest(sink, "sha256").hexdigest()  # type: ignore[arg-type]  # readable, says typeshed not
            if digest != header.result_sha256:
                raise damaged("the result's digest is not the promised one")
    return digest


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
        data = read_at(file, position, min(count, end - position))
        position += len(data)
        return data

    return read
