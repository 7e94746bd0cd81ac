"""Coding streams: every codec and parameter set is tried, the smallest kept.

Adding a coder is one function here and its decoder in runtimes/artifact/delta/codecs.py.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Iterator
from dataclasses import dataclass

from runtimes.artifact.delta.codecs import CODECS, MIN_DICTIONARY_LOG2, lzma_filters
from runtimes.artifact.delta.format import Kind, stream_id

# Dictionaries cost memory on the device. Residual planes repeat little over distance; literals (a whole file) do.
PLANE_DICTIONARY_LOG2 = 20
LITERAL_DICTIONARY_LOG2 = 23
# (lc, lp, pb): text-like; memoryless bytes; text without alignment; 4-byte elements.
_PROPERTIES = ((3, 0, 2), (0, 0, 0), (3, 0, 0), (0, 2, 2))
THOROUGH_BYTES = 4 << 20  # larger streams get two parameter sets, not four: each takes about a second per MiB


@dataclass(frozen=True, slots=True)
class Coded:
    codec: str
    params: int
    data: bytes


def smallest(stream: int, raw: bytes) -> Coded:
    """The smallest coding of ``raw``; ties go to the first, so that the same input gives the same bytes."""
    return min(_codings(stream, raw), key=lambda coded: len(coded.data))


def _codings(stream: int, raw: bytes) -> Iterator[Coded]:
    yield Coded(CODECS.get("stored").name, 0, raw)
    limit = LITERAL_DICTIONARY_LOG2 if stream == stream_id(Kind.LITERAL) else PLANE_DICTIONARY_LOG2
    dictionary = min(limit, max(MIN_DICTIONARY_LOG2, len(raw).bit_length()))
    for lc, lp, pb in _PROPERTIES if len(raw) <= THOROUGH_BYTES else _PROPERTIES[:2]:
        params = dictionary | lc << 8 | lp << 12 | pb << 16
        yield Coded(CODECS.get("lzma2").name, params, _lzma2(raw, params))
    yield Coded(CODECS.get("bzip2").name, 0, bz2.compress(raw, 9))


def _lzma2(raw: bytes, params: int) -> bytes:
    [filters] = lzma_filters(params)
    search = {"mode": lzma.MODE_NORMAL, "mf": lzma.MF_BT4, "nice_len": 273, "depth": 512}
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=[filters | search])
