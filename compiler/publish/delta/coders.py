"""Coding streams: an estimate says which codecs are worth trying, the smallest of those is kept.

Adding a coder is one function here and its decoder in runtimes/artifact/delta.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from runtimes.artifact.delta.codecs import CODECS, MIN_DICTIONARY_LOG2, lzma_filters
from runtimes.artifact.delta.format import Kind, stream_id

# Dictionaries cost memory on the device. Residual planes repeat little over distance; literals (a whole file) do.
PLANE_DICTIONARY_LOG2 = 18
LITERAL_DICTIONARY_LOG2 = 22
# (lc, lp, pb): text-like; memoryless bytes; text without alignment; 4-byte elements.
_PROPERTIES = ((3, 0, 2), (0, 0, 0), (3, 0, 0), (0, 2, 2))
THOROUGH_BYTES = (
    1 << 16
)  # up to here everything is tried: LZMA2 codes about a megabyte of weights per second and setting
SAMPLE_BYTES = 1 << 16  # what estimates look at per slice: larger than deflate's window of 32 KiB
SAMPLES = 8
NOISE = 0.97  # weights whose sample deflates to more than this are stored: LZMA2 would gain as little


@dataclass(frozen=True, slots=True)
class Coded:
    codec: str
    params: int
    data: bytes


def smallest(stream: int, raw: bytes) -> Coded:
    """The smallest coding tried of ``raw``; ties go to the first, so that the same input gives the same bytes."""
    return min(_codings(stream, raw), key=lambda coded: len(coded.data))


def estimate(raw: bytes) -> float:
    """Bytes that ``raw`` will take: the smaller of its order-0 entropy and what deflate makes of slices of it."""
    return min(order0_bytes(raw), _deflate_share(raw) * len(raw))


def order0_bytes(raw: bytes) -> float:
    """-sum(n_i * log2(n_i / n)) / 8 over the byte values of ``raw``."""
    counts = np.bincount(np.frombuffer(raw, np.uint8))
    present = counts[counts > 0]
    return float(-(present * np.log2(present / max(len(raw), 1))).sum()) / 8


def _deflate_share(raw: bytes) -> float:
    if len(raw) <= SAMPLES * SAMPLE_BYTES:
        return len(zlib.compress(raw, 1)) / max(len(raw), 1)
    starts = np.linspace(0, len(raw) - SAMPLE_BYTES, SAMPLES).astype(int).tolist()
    made = sum(len(zlib.compress(raw[start : start + SAMPLE_BYTES], 1)) for start in starts)
    return float(made / (SAMPLES * SAMPLE_BYTES))


def _codings(stream: int, raw: bytes) -> Iterator[Coded]:
    yield Coded(CODECS.get("stored").name, 0, raw)
    limit = LITERAL_DICTIONARY_LOG2 if stream == stream_id(Kind.LITERAL) else PLANE_DICTIONARY_LOG2
    dictionary = min(limit, max(MIN_DICTIONARY_LOG2, len(raw).bit_length()))
    thorough = len(raw) <= THOROUGH_BYTES
    if not thorough and estimate(raw) > NOISE * len(raw):
        return
    for lc, lp, pb in _PROPERTIES if thorough else _PROPERTIES[1:2]:
        params = dictionary | lc << 8 | lp << 12 | pb << 16
        yield Coded(CODECS.get("lzma2").name, params, _lzma2(raw, params, thorough))
    yield Coded(CODECS.get("bzip2").name, 0, bz2.compress(raw, 9))


def _lzma2(raw: bytes, params: int, thorough: bool) -> bytes:
    [filters] = lzma_filters(params)
    search = {"mode": lzma.MODE_NORMAL, "mf": lzma.MF_BT4, "nice_len": 273, "depth": 512 if thorough else 8}
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=[filters | search])
