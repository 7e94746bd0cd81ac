"""Hostile and damaged patches: a typed error, nothing written, no memory taken on a promise."""

from __future__ import annotations

import hashlib
import lzma
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runtimes.artifact.delta import apply_delta, read_header
from runtimes.artifact.delta.codecs import lzma_filters
from runtimes.artifact.delta.format import (
    CLASSES,
    HEADER,
    MAX_CHANNELS,
    MAX_SEGMENTS,
    STREAM,
    Header,
    Kind,
    Predictor,
    Segment,
    StreamRow,
    pack_header,
    pack_segments,
    stream_sizes,
)
from runtimes.errors import DeltaBaseMismatch, DeltaError, StorageError

BASE = np.arange(4000, dtype=np.uint8).tobytes()
LIMIT = 1 << 20
PARAMS = 12 | 3 << 8


def _patch(
    segments: list[Segment], result: bytes, sections: dict[int, tuple[int, int, bytes, int]], **changes: object
) -> bytes:
    """A patch of given parts. ``sections``: stream -> (codec, params, stored bytes, raw size)."""
    rows = tuple(StreamRow(s, codec, params, raw, len(d)) for s, (codec, params, d, raw) in sections.items())
    table = pack_segments(segments)
    header = Header(
        len(BASE),
        hashlib.sha256(BASE).hexdigest(),
        len(result),
        hashlib.sha256(result).hexdigest(),
        rows,
        len(segments),
        len(table),
    )
    return pack_header(replace(header, **changes)) + table + b"".join(d for _, _, d, _ in sections.values())  # type: ignore[arg-type]


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=lzma_filters(PARAMS))


RESULT = BASE[100:200] + b"hello" + bytes((b + 1) % 256 for b in BASE[:50])
GOOD_SEGMENTS = [
    Segment(Kind.DIFF8, 0, 50, 105),  # decoding order is not the file's
    Segment(Kind.COPY, 100, 100, 0),
    Segment(Kind.LITERAL, 0, 5, 100),
]
GOOD_SECTIONS = {4: (0, 0, b"hello", 5), 8: (1, PARAMS, _lzma(b"\x02" * 50), 50), CLASSES: (0, 0, b"\x08", 1)}
GOOD = _patch(GOOD_SEGMENTS, RESULT, GOOD_SECTIONS)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(BASE)
    return path


def _apply(base: Path, patch: bytes, *, limit: int = LIMIT) -> Path:
    path, destination = base.with_name("patch"), base.with_name("new")
    path.write_bytes(patch)
    digest = apply_delta(base, path, destination, max_result_bytes=limit)
    assert digest == hashlib.sha256(destination.read_bytes()).hexdigest()
    return destination


def _refused(base: Path, patch: bytes, *, limit: int = LIMIT) -> DeltaError:
    with pytest.raises(DeltaError) as caught:
        _apply(base, patch, limit=limit)
    assert {p.name for p in base.parent.iterdir()} <= {"base", "patch"}, "something was left behind"
    assert caught.value.remedy
    return caught.value


def test_a_good_patch_applies_also_in_place(base: Path) -> None:
    assert _apply(base, GOOD).read_bytes() == RESULT
    apply_delta(base, base.with_name("patch"), base, max_result_bytes=LIMIT)
    assert base.read_bytes() == RESULT


def test_the_wrong_base_is_named(base: Path) -> None:
    base.write_bytes(BASE[:-1] + b"\0")
    assert isinstance(_refused(base, GOOD), DeltaBaseMismatch)
    base.write_bytes(BASE + b"\0")
    assert isinstance(_refused(base, GOOD), DeltaBaseMismatch)


def test_every_truncation_is_refused(base: Path) -> None:
    for length in range(len(GOOD)):
        _refused(base, GOOD[:length])
    _refused(base, GOOD + b"\0")


def test_every_bit_flip_is_refused_or_harmless(base: Path) -> None:
    for position in range(len(GOOD)):
        flipped = bytearray(GOOD)
        flipped[position] ^= 1 << position % 8
        try:
            assert _apply(base, bytes(flipped)).read_bytes() == RESULT
            base.with_name("new").unlink()
        except DeltaError:
            assert not base.with_name("new").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), cut=st.integers(0, len(GOOD)))
@example(data=b"\x01", cut=len(GOOD) - 1)  # the last byte of an LZMA stream carries nothing
def test_garbage_is_refused_or_gives_the_signed_result(base: Path, data: bytes, cut: int) -> None:
    base.with_name("new").unlink(missing_ok=True)
    try:
        made = _apply(base, GOOD[:cut] + data)
    except DeltaError:
        _refused(base, GOOD[:cut] + data)
    else:
        assert made.read_bytes() == RESULT, "only the bytes that the header's digest names may appear"


def test_a_larger_result_than_allowed_is_refused_before_anything_is_read(base: Path) -> None:
    assert "at most 10" in _refused(base, GOOD, limit=10).message


def test_a_bomb_does_not_unfold(base: Path) -> None:
    """64 MiB of zeros in 10 KB: promised and refused by size, or hidden behind a small promise and cut there."""
    bomb = lzma.compress(bytes(64 << 20), lzma.FORMAT_RAW, filters=lzma_filters(PARAMS))
    promised = _patch([Segment(Kind.LITERAL, 0, 64 << 20)], b"", {4: (1, PARAMS, bomb, 64 << 20)}, result_size=64 << 20)
    hidden = _patch([Segment(Kind.LITERAL, 0, 10)], b"0123456789", {4: (1, PARAMS, bomb, 10)})
    tracemalloc.start()
    _refused(base, promised)
    _refused(base, hidden)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


SCALED = {"predictor": Predictor.RESCALE, "channels": 5, "inner": 31}


@pytest.mark.parametrize(
    "segments",
    [
        [Segment(Kind.COPY, len(BASE) - 10, 155)],
        [Segment(Kind.COPY, 2**62, 155)],
        [Segment(Kind.COPY, -1, 155)],
        [Segment(Kind.DIFF16, 0, 155), Segment(Kind.COPY, 0, 1, 155)],
        [Segment(Kind.COPY, 0, 154)],
        [Segment(Kind.COPY, 0, 155), Segment(Kind.COPY, 0, 0, 155)],
        [Segment(Kind.COPY, 0, 155), Segment(Kind.COPY, 0, 2**63, 155)],
        [Segment(Kind.COPY, 0, 100), Segment(Kind.COPY, 0, 100, 55)],
        [Segment(Kind.COPY, 0, 100), Segment(Kind.COPY, 0, 50, 105)],
        [Segment(Kind.COPY, 0, 155, -1)],
        [Segment(Kind.COPY, 0, 155, 0, per_channel=True)],
        [Segment(Kind.COPY, 0, 155, 0, channels=2)],
        [Segment(Kind.LITERAL, 0, 155)],
        [Segment(Kind.DIFF8, 0, 155, channels=156)],
        [Segment(Kind.DIFF8, 0, 155, inner=0)],
        [Segment(Kind.DIFF8, 0, 155, left=len(BASE) - 19, **SCALED)],
        [Segment(Kind.DIFF8, 0, 155, right=155 - 19, **SCALED)],
        [Segment(Kind.DIFF8, 0, 155, right=-1, **SCALED)],
        [Segment(Kind.ORDERED16, 0, 154, **SCALED), Segment(Kind.COPY, 0, 1, 154)],
        [Segment(Kind.DIFF8, 0, 155, predictor=Predictor.RATIO)],
        [Segment(Kind.ORDERED32, 0, 152, right=153, predictor=Predictor.PRODUCT), Segment(Kind.COPY, 0, 3, 152)],
        [],
    ],
)
def test_an_absurd_segment_table_is_refused(base: Path, segments: list[Segment]) -> None:
    """By its own check: streams of the sizes that the segments ask for are there."""
    sizes = stream_sizes(segments)
    sections = {stream: (0, 0, bytes(min(size, 1000)), size) for stream, size in sizes.items() if size < 1000}
    _refused(base, _patch(segments, RESULT, sections))


def test_channels_cost_no_more_than_their_segment(base: Path) -> None:
    """A channel's elements may be four thousand millions by the patch, and its count the most: little memory is taken."""
    segment = Segment(Kind.DIFF8, 0, 155, 0, per_channel=True, channels=155, inner=2**32 - 1)
    sections = {8: (0, 0, bytes(155), 155), CLASSES: (0, 0, bytes(156), 156)}
    tracemalloc.start()
    assert _apply(base, _patch([segment], BASE[:155], sections)).read_bytes() == BASE[:155]
    too_many = Segment(Kind.DIFF8, 0, 155, 0, channels=MAX_CHANNELS + 1)
    base.with_name("new").unlink()
    _refused(base, _patch([too_many], BASE[:155], sections))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize(
    "change",
    [
        {"segment_count": MAX_SEGMENTS + 1},
        {"segment_count": 2},
        {"segment_count": 4},
        {"table_bytes": 2**32 - 1},
        {"base_size": 2**64 - 1},
        {"result_size": 2**64 - 1},
    ],
)
def test_an_absurd_header_is_refused(base: Path, change: dict[str, int]) -> None:
    _refused(base, _patch(GOOD_SEGMENTS, RESULT, GOOD_SECTIONS, **change), limit=2**64)


@pytest.mark.parametrize(
    "section",
    [(9, 0), (1, 0), (1, 40 | 3 << 8), (1, 12 | 4 << 8 | 4 << 12), (1, 12 | 3 << 8 | 9 << 16), (0, 1), (2, 1)],
)
def test_unknown_codecs_and_parameters_are_refused(base: Path, section: tuple[int, int]) -> None:
    sections = GOOD_SECTIONS | {8: (*section, _lzma(b"\x02" * 50), 50)}
    _refused(base, _patch(GOOD_SEGMENTS, RESULT, sections))


def test_too_much_decoder_memory_is_refused(base: Path) -> None:
    sections = dict.fromkeys(range(10), (1, 24 | 3 << 8, b"", 0))
    assert "decoding would take" in _refused(base, _patch(GOOD_SEGMENTS, RESULT, sections)).message


def test_a_later_version_is_refused_by_name(base: Path) -> None:
    assert "version 4" in _refused(base, GOOD[:8] + b"\x04\x00" + GOOD[10:]).message


def test_missing_files_and_a_missing_folder_are_typed(base: Path) -> None:
    with pytest.raises(DeltaError):
        apply_delta(base, base.with_name("none"), base.with_name("new"), max_result_bytes=LIMIT)
    base.with_name("patch").write_bytes(GOOD)
    with pytest.raises(StorageError):
        apply_delta(base.with_name("none"), base.with_name("patch"), base.with_name("new"), max_result_bytes=LIMIT)
    with pytest.raises(StorageError):
        apply_delta(base, base.with_name("patch"), base.parent / "no" / "new", max_result_bytes=LIMIT)


def test_the_header_tells_what_the_patch_is(base: Path) -> None:
    base.with_name("patch").write_bytes(GOOD)
    header = read_header(base.with_name("patch"))
    assert (header.base_size, header.result_size) == (len(BASE), len(RESULT))
    assert header.result_sha256 == hashlib.sha256(RESULT).hexdigest()
    assert header.size_bytes == HEADER.size + 3 * STREAM.size
