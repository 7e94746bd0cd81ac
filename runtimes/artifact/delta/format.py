"""The delta container, version 2: header, stream table, segment table. docs/formats/delta.md describes every byte.

Both sides use this module; everything in it is checked against caps before memory is taken.
"""

from __future__ import annotations

import lzma
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta.codecs import codec_by_id, damaged, lzma_filters

MAGIC: Final = b"EWDELTA\x00"
VERSION: Final = 2
MAX_STREAMS = 32
MAX_SEGMENTS = 1 << 17
MAX_DECODER_BYTES = 24 << 20
HEADER = struct.Struct("<8sHHQ32sQ32sII")  # magic version streams base result segments table_bytes
STREAM = struct.Struct("<BBHIQQ")  # stream codec reserved params raw_bytes stored_bytes
SEGMENT_BYTES: Final = 17  # kind u8, base skip i64, size u64
TABLE_PARAMS: Final = 16 | 3 << 8  # lzma2: dictionary 64 KiB, lc 3


class Kind(IntEnum):
    """What a segment of the result is made of."""

    COPY = 0  # the base's bytes
    LITERAL = 1  # bytes of stream LITERAL
    DIFF8 = 2  # element-wise modular residuals on the base's unsigned integers of 1, 2, 4 bytes
    DIFF16 = 3
    DIFF32 = 4
    ORDERED16 = 5  # the same on float bits mapped to integers of the same order
    ORDERED32 = 6


# Bytes per element; COPY reads no stream, LITERAL and DIFF8 one, the others two: tokens and extra bits (tokens.py).
WIDTH: Final = {Kind.DIFF8: 1, Kind.DIFF16: 2, Kind.DIFF32: 4, Kind.ORDERED16: 2, Kind.ORDERED32: 4}
ORDERED: Final = frozenset({Kind.ORDERED16, Kind.ORDERED32})
NEEDS_BASE: Final = frozenset(WIDTH) | {Kind.COPY}


def stream_id(kind: Kind, part: int = 0) -> int:
    """The stream that a kind reads: part 0 holds one byte per element, part 1 the extra bits of wider ones."""
    return int(kind) * 4 + part


@dataclass(frozen=True, slots=True)
class Header:
    """Digests are hex SHA-256. ``table_bytes`` is the stored size of the segment table."""

    base_size: int
    base_sha256: str
    result_size: int
    result_sha256: str
    streams: tuple[StreamRow, ...]
    segment_count: int
    table_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes before the segment table."""
        return HEADER.size + STREAM.size * len(self.streams)

    @property
    def memory_bytes(self) -> int:
        """Upper bound of what the decoders and the segment table take."""
        return sum(codec_by_id(s.codec).memory_bytes(s.params) for s in self.streams) + 8 * (
            self.segment_count * SEGMENT_BYTES
        )


@dataclass(frozen=True, slots=True)
class StreamRow:
    stream: int
    codec: int
    params: int
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Segment:
    """``size`` bytes of the result, in order. ``base`` is the offset of the matching range in the base, 0 for LITERAL."""

    kind: Kind
    base: int
    size: int


def pack_header(header: Header) -> bytes:
    rows = [STREAM.pack(s.stream, s.codec, 0, s.params, s.raw_bytes, s.stored_bytes) for s in header.streams]
    head = HEADER.pack(
        MAGIC,
        VERSION,
        len(header.streams),
        header.base_size,
        bytes.fromhex(header.base_sha256),
        header.result_size,
        bytes.fromhex(header.result_sha256),
        header.segment_count,
        header.table_bytes,
    )
    return head + b"".join(rows)


def unpack_header(data: bytes, patch_size: int) -> Header:
    """Parse the header and stream table at the start of ``data``, and check all sizes against ``patch_size``.

    Raises DeltaError.
    """
    if len(data) < HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise damaged("it does not begin as a delta does")
    _, version, count, base_size, base, result_size, result, segments, table = HEADER.unpack_from(data)
    if version != VERSION:
        raise damaged(f"it has format version {version}, this agent reads {VERSION}")
    if count > MAX_STREAMS or segments > MAX_SEGMENTS or len(data) < HEADER.size + count * STREAM.size:
        raise damaged(f"{count} streams and {segments} segments are more than it can hold")
    rows = []
    for stream, codec, reserved, params, raw, stored in STREAM.iter_unpack(
        data[HEADER.size : HEADER.size + count * STREAM.size]
    ):
        if reserved:
            raise damaged("reserved bytes are not zero")
        rows.append(StreamRow(stream, codec, params, raw, stored))
    header = Header(base_size, base.hex(), result_size, result.hex(), tuple(rows), segments, table)
    _check(header, patch_size)
    return header


def _check(header: Header, patch_size: int) -> None:
    if len({row.stream for row in header.streams}) != len(header.streams):
        raise damaged("a stream appears twice")
    expected = header.size_bytes + header.table_bytes + sum(row.stored_bytes for row in header.streams)
    if expected != patch_size:
        raise damaged(f"its table speaks of {expected} bytes, the file has {patch_size}")
    if header.table_bytes > header.segment_count * SEGMENT_BYTES + 64:  # LZMA2 adds at most a few bytes per 64 KiB
        raise damaged(f"its segment table takes {header.table_bytes} bytes for {header.segment_count} segments")
    if header.memory_bytes > MAX_DECODER_BYTES:
        raise damaged(f"decoding would take {header.memory_bytes} bytes, at most {MAX_DECODER_BYTES} are allowed")


def pack_segments(segments: list[Segment]) -> bytes:
    """Columns of kind, base skip and size, then LZMA2. The skip counts from the end of the previous range in the base."""
    count = len(segments)
    table = np.zeros(count * SEGMENT_BYTES, np.uint8)
    kinds, skips, sizes = _columns(table, count)
    position = 0
    for index, segment in enumerate(segments):
        kinds[index], sizes[index] = segment.kind, segment.size
        if segment.kind in NEEDS_BASE:
            skips[index] = segment.base - position
            position = segment.base + segment.size
    return lzma.compress(table.tobytes(), lzma.FORMAT_RAW, filters=lzma_filters(TABLE_PARAMS))


def unpack_segments(data: bytes, header: Header) -> list[Segment]:
    """Decode and check the segment table: every range lies in the base, sizes add up, streams fit. Raises DeltaError."""
    raw = _inflate_table(data, header.segment_count * SEGMENT_BYTES)
    kinds, skips, sizes = _columns(np.frombuffer(raw, np.uint8), header.segment_count)
    segments: list[Segment] = []
    position = 0
    for kind, skip, size in zip(kinds.tolist(), skips.tolist(), sizes.tolist(), strict=True):
        if kind not in iter(Kind) or size == 0 or size % WIDTH.get(Kind(kind), 1):
            raise damaged(f"segment {len(segments)} has kind {kind} and size {size}")
        needs_base = Kind(kind) in NEEDS_BASE
        base = position + skip if needs_base else 0
        if base < 0 or (needs_base and base + size > header.base_size) or (skip and not needs_base):
            raise damaged(f"segment {len(segments)} reads outside of the base")
        position = base + size if needs_base else position
        segments.append(Segment(Kind(kind), base, size))
    _check_sums(segments, header)
    return segments


def _inflate_table(data: bytes, size: int) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(TABLE_PARAMS))
    try:
        raw = decompressor.decompress(data, max_length=size)
    except (lzma.LZMAError, EOFError) as error:
        raise damaged(f"its segment table is damaged ({error})") from error
    if len(raw) != size:
        raise damaged(f"its segment table has {len(raw)} bytes, expected {size}")
    return raw


def _columns(table: NDArray[np.uint8], count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint64]]:
    return table[:count], table[count : 9 * count].view("<i8"), table[9 * count :].view("<u8")


def stream_sizes(segments: list[Segment]) -> dict[int, int]:
    """Bytes that each stream must give, by stream id, extra bits left out: how many those are stands in the tokens."""
    sizes: dict[int, int] = {}
    for segment in segments:
        if segment.kind is not Kind.COPY:
            stream = stream_id(segment.kind)
            sizes[stream] = sizes.get(stream, 0) + segment.size // WIDTH.get(segment.kind, 1)
    return sizes


def _check_sums(segments: list[Segment], header: Header) -> None:
    total = sum(segment.size for segment in segments)
    if total != header.result_size:
        raise damaged(f"its segments make {total} bytes, its header promises {header.result_size}")
    sizes = stream_sizes(segments)
    rows = {row.stream: row.raw_bytes for row in header.streams}
    extra = {stream_id(kind, 1): 4 * sizes.get(stream_id(kind), 0) for kind, width in WIDTH.items() if width > 1}
    if any(rows.pop(stream, 0) > most for stream, most in extra.items()) or sizes != rows:
        raise damaged("its streams do not have the sizes that its segments need")
