"""The delta container, version 3: header, stream table, segment table. docs/formats/delta.md describes every byte.

Both sides use this module; everything in it is checked against caps before memory is taken.
"""

from __future__ import annotations

import lzma
import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta.codecs import codec_by_id, damaged, lzma_filters

MAGIC: Final = b"EWDELTA\x00"
VERSION: Final = 3
MAX_STREAMS = 32
MAX_SEGMENTS = 1 << 16
MAX_CHANNELS: Final = 1 << 16
MAX_DECODER_BYTES = 24 << 20
HEADER = struct.Struct("<8sHHQ32sQ32sII")  # magic version streams base result segments table_bytes
STREAM = struct.Struct("<BBHIQQ")  # stream codec reserved params raw_bytes stored_bytes
SEGMENT_BYTES: Final = 50  # the columns below
SEGMENT_MEMORY: Final = 16 * SEGMENT_BYTES  # the table, its columns as numbers, the segments made of them
TABLE_PARAMS: Final = 16 | 3 << 8  # lzma2: dictionary 64 KiB, lc 3
# kind, predictor; skips in the result, the base, and of the two operands; size; channels, inner
_COLUMNS: Final = ("<u1", "<u1", "<i8", "<i8", "<i8", "<i8", "<u8", "<u4", "<u4")


class Kind(IntEnum):
    """What a segment of the result is made of."""

    COPY = 0  # the base's bytes
    LITERAL = 1  # bytes of stream LITERAL
    DIFF8 = 2  # element-wise modular residuals on integers of 1, 2, 4 bytes
    DIFF16 = 3
    DIFF32 = 4
    ORDERED16 = 5  # the same on the bits of float16, float32 or bfloat16 mapped to integers of the same order
    ORDERED32 = 6
    BRAIN16 = 7
    DIFF4 = 8  # two integers of 4 bits in each byte


class Predictor(IntEnum):
    """What a residual is added to."""

    BASE = 0  # the base's element
    RESCALE = 1  # base * (base's scale / result's scale), rounded: int8 and int32 whose scale moved
    PRODUCT = 2  # a scale of the result * a scalar of the result, float32: a bias' scale
    RATIO = 3  # base * a ratio that the patch holds for the channel: float16 and float32


PER_CHANNEL: Final = 0x80  # of the predictor column: classes stand for every channel, not for the whole segment
# Bytes per element; COPY reads no stream, LITERAL and DIFF8 one, the wider kinds two: tokens and extra bits (tokens.py).
WIDTH: Final = {
    Kind.DIFF8: 1,
    Kind.DIFF16: 2,
    Kind.DIFF32: 4,
    Kind.ORDERED16: 2,
    Kind.ORDERED32: 4,
    Kind.BRAIN16: 2,
    Kind.DIFF4: 1,
}
ORDERED: Final = frozenset({Kind.ORDERED16, Kind.ORDERED32, Kind.BRAIN16})
CLASSES, RATIOS = 252, 253  # streams that belong to no kind
_PREDICTABLE: Final = {
    Predictor.BASE: frozenset(WIDTH),
    Predictor.RESCALE: frozenset({Kind.DIFF8, Kind.DIFF32}),
    Predictor.PRODUCT: frozenset({Kind.ORDERED32}),
    Predictor.RATIO: frozenset({Kind.ORDERED16, Kind.ORDERED32}),
}


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
        streams = sum(codec_by_id(s.codec).memory_bytes(s.params) for s in self.streams)
        return streams + self.segment_count * SEGMENT_MEMORY


@dataclass(frozen=True, slots=True)
class StreamRow:
    stream: int
    codec: int
    params: int
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Segment:
    """``size`` bytes of the result from ``result`` on; segments are decoded in the table's order, not the file's.

    ``base``: offset of the matching range in the base; 0 where the kind or the predictor reads none.
    ``left``, ``right``: the predictor's operands. RESCALE: [channels] float32 scales in the base, and in the result.
    PRODUCT: [channels] float32 scales and one scalar, both in the result. What is read of the result was made before.
    Element i belongs to channel (i // inner) % channels.
    """

    kind: Kind
    base: int
    size: int
    result: int = 0
    predictor: Predictor = Predictor.BASE
    per_channel: bool = False
    left: int = 0
    right: int = 0
    channels: int = 1
    inner: int = 1

    @property
    def reads_base(self) -> bool:
        return self.kind is not Kind.LITERAL and self.predictor is not Predictor.PRODUCT

    @property
    def operands_in_result(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of what the predictor reads of the result."""
        if self.predictor is Predictor.RESCALE:
            return ((self.right, self.right + 4 * self.channels),)
        if self.predictor is Predictor.PRODUCT:
            return ((self.left, self.left + 4 * self.channels), (self.right, self.right + 4))
        return ()

    @property
    def class_bytes(self) -> int:
        """Bytes of the stream CLASSES: one for the segment, and with ``per_channel`` one more for each channel."""
        return 0 if self.kind not in WIDTH else 1 + (self.channels if self.per_channel else 0)


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


@dataclass(slots=True)
class _Ends:
    """Where the previous segment stopped in every file: positions are stored as distances from there."""

    result: int = 0
    base: int = 0
    left: int = 0
    right: int = 0

    def skips(self, segment: Segment) -> tuple[int, int, int, int]:
        skips = (
            segment.result - self.result,
            segment.base - self.base if segment.reads_base else 0,
            segment.left - self.left if segment.predictor in _OPERANDS else 0,
            segment.right - self.right if segment.predictor in _OPERANDS else 0,
        )
        self.follow(segment)
        return skips

    def follow(self, segment: Segment) -> None:
        self.result = segment.result + segment.size
        if segment.reads_base:
            self.base = segment.base + segment.size
        if segment.predictor in _OPERANDS:
            self.left = segment.left + 4 * segment.channels
            self.right = segment.right + 4 * (segment.channels if segment.predictor is Predictor.RESCALE else 1)


_OPERANDS: Final = frozenset({Predictor.RESCALE, Predictor.PRODUCT})


def pack_segments(segments: list[Segment]) -> bytes:
    """The columns one after the other, then LZMA2."""
    ends, rows = _Ends(), []
    for s in segments:
        predictor = int(s.predictor) | (PER_CHANNEL if s.per_channel else 0)
        rows.append((int(s.kind), predictor, *ends.skips(s), s.size, s.channels, s.inner))
    columns = zip(*rows, strict=True) if rows else ()
    table = b"".join(np.array(c, t).tobytes() for c, t in zip(columns, _COLUMNS, strict=bool(rows)))
    return lzma.compress(table, lzma.FORMAT_RAW, filters=lzma_filters(TABLE_PARAMS))


def unpack_segments(data: bytes, header: Header) -> list[Segment]:
    """Decode and check the segment table: ranges lie in their files, the result is covered once, streams fit.

    Raises DeltaError.
    """
    table = _inflate_table(data, header.segment_count * SEGMENT_BYTES)
    segments: list[Segment] = []
    ends = _Ends()
    for row in zip(*(c.tolist() for c in _columns(table, header.segment_count)), strict=True):
        segment = _segment(row, ends, header)
        ends.follow(segment)
        segments.append(segment)
    _check_cover(segments, header)
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


def _columns(table: bytes, count: int) -> list[NDArray[Any]]:
    found, position = [], 0
    for form in _COLUMNS:
        found.append(np.frombuffer(table, form, count, position))
        position += found[-1].nbytes
    return found


_KINDS: Final = {int(kind): kind for kind in Kind}
_PREDICTORS: Final = {int(predictor): predictor for predictor in Predictor}


def _segment(row: tuple[int, ...], ends: _Ends, header: Header) -> Segment:
    """One row, checked. The skips of fields that the segment does not use must be zero."""
    result, base, left, right, size, channels, inner = row[2:]
    kind, predictor = _KINDS.get(row[0]), _PREDICTORS.get(row[1] & ~PER_CHANNEL)
    if kind is None or predictor is None or not size or size % WIDTH.get(kind, 1):
        raise damaged(f"a segment has kind {row[0]}, predictor {row[1]} and size {size}")
    # No more channels than elements: what a segment costs grows with its size only.
    if not 1 <= channels <= min(MAX_CHANNELS, size // WIDTH.get(kind, 1)) or not inner:
        raise damaged(f"a segment has {channels} channels of {inner} elements")
    plain = kind not in WIDTH
    if (plain and (row[1] or channels > 1)) or not (plain or kind in _PREDICTABLE[predictor]):
        raise damaged(f"a segment of kind {row[0]} cannot have predictor {row[1]} and {channels} channels")
    operands = predictor in _OPERANDS
    reads_base = kind is not Kind.LITERAL and predictor is not Predictor.PRODUCT
    if (base and not reads_base) or ((left or right) and not operands):
        raise damaged("a segment gives a position that it does not use")
    segment = Segment(
        kind,
        ends.base + base if reads_base else 0,
        size,
        ends.result + result,
        predictor,
        row[1] >= PER_CHANNEL,
        ends.left + left if operands else 0,
        ends.right + right if operands else 0,
        channels,
        inner,
    )
    _check_ranges(segment, header)
    return segment


def _check_ranges(segment: Segment, header: Header) -> None:
    ranges = [(segment.result, segment.size, header.result_size)]
    if segment.reads_base:
        ranges.append((segment.base, segment.size, header.base_size))
    if segment.predictor is Predictor.RESCALE:
        ranges.append((segment.left, 4 * segment.channels, header.base_size))
        ranges.append((segment.right, 4 * segment.channels, header.result_size))
    if segment.predictor is Predictor.PRODUCT:
        ranges.append((segment.left, 4 * segment.channels, header.result_size))
        ranges.append((segment.right, 4, header.result_size))
    if any(start < 0 or start + size > limit for start, size, limit in ranges):
        raise damaged("a segment reads or writes outside of its files")


def _check_cover(segments: list[Segment], header: Header) -> None:
    """Every byte of the result is made exactly once."""
    end = 0
    for segment in sorted(segments, key=lambda s: s.result):
        if segment.result != end:
            raise damaged(f"its segments leave a gap or overlap at byte {end} of the result")
        end += segment.size
    if end != header.result_size:
        raise damaged(f"its segments make {end} bytes, its header promises {header.result_size}")


def stream_sizes(segments: list[Segment]) -> dict[int, int]:
    """Bytes that each stream must give, by stream id, extra bits left out: how many those are stands in the tokens."""
    sizes: dict[int, int] = {}
    for segment in segments:
        needs = {CLASSES: segment.class_bytes}
        if segment.kind is not Kind.COPY:
            needs[stream_id(segment.kind)] = segment.size // WIDTH.get(segment.kind, 1)
        if segment.predictor is Predictor.RATIO:
            needs[RATIOS] = 2 * segment.channels
        for stream, size in needs.items():
            sizes[stream] = sizes.get(stream, 0) + size
    return {stream: size for stream, size in sizes.items() if size}


def _check_sums(segments: list[Segment], header: Header) -> None:
    sizes = stream_sizes(segments)
    rows = {row.stream: row.raw_bytes for row in header.streams}
    extra = {stream_id(kind, 1): 4 * sizes.get(stream_id(kind), 0) for kind, width in WIDTH.items() if width > 1}
    if any(rows.pop(stream, 0) > most for stream, most in extra.items()) or sizes != rows:
        raise damaged("its streams do not have the sizes that its segments need")


assert sum(np.dtype(form).itemsize for form in _COLUMNS) == SEGMENT_BYTES
assert len(_COLUMNS) == len(fields(Segment)) - 1  # predictor and per_channel share one
