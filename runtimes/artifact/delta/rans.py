"""Interleaved range asymmetric numeral systems (rANS) with static tables chosen by context, vectorised over lanes.

Symbol i of a stream belongs to lane i mod L. A lane's state x in [2^16, 2^32) decodes one symbol as

    slot = x mod 2^12;  s = the symbol whose range [start_s, start_s + freq_s) holds slot
    x = freq_s * (x >> 12) + slot - start_s;  if x < 2^16: x = x << 16 | next 16-bit word

Source: J. Duda, "Asymmetric numeral systems", arXiv:1311.2540; F. Giesen, "Interleaved entropy coders", arXiv:1402.3392.
docs/formats/delta.md describes the bytes. The encoder is compiler/publish/delta/rans.py.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import DeltaError

CONTEXTS: Final = 128  # contexts.py makes them
PRECISION: Final = 12
SLOTS: Final = 1 << PRECISION
LOW: Final = 1 << 16  # states stay at or above
MAX_LANES_LOG2: Final = 12
MAX_TABLES: Final = 64
MODEL_FILTERS: Final[list[dict[str, Any]]] = [
    {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16, "lc": 0, "lp": 0, "pb": 0}
]
WORDS_PER_READ: Final = 1 << 15
_SLOT, _SHIFT, _ONE = np.uint32(SLOTS - 1), np.uint32(PRECISION), np.uint32(1)
_LOW, _WORD, _FREQUENCY = np.uint32(LOW), np.uint32(16), np.uint32(20)

Fail = Callable[[str], DeltaError]


def unpack_params(params: int, fail: Fail) -> tuple[int, int]:
    """(lanes, tables). ``params``: bits 0-3 log2 of the lanes, from 8 the number of tables."""
    log2, tables = params & 0xFF, params >> 8
    if log2 > MAX_LANES_LOG2 or not 1 <= tables <= MAX_TABLES:
        raise fail(f"rans parameters {params:#x} are out of range")
    return 1 << log2, tables


def memory_bytes(lanes: int, tables: int) -> int:
    """The tables and what they are made from; the context map; states and a step's arrays; words read ahead."""
    return tables * (SLOTS * 8 + 256 * 64) + SLOTS * 32 + CONTEXTS * 16 + lanes * 96 + WORDS_PER_READ * 10


def counts_of(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Relative counts from their one-byte form: 0; 1 to 15; then (16 + low 4 bits) << (high 4 bits - 1)."""
    high, low = codes.astype(np.int64) >> 4, codes.astype(np.int64) & 15
    return np.where(high == 0, low, (16 + low) << np.maximum(high - 1, 0))


def frequencies(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[tables, 256] counts to frequencies that sum to 2^12 per table.

    freq = 1 + floor(count * (2^12 - n) / sum) for the n counts above zero; what is missing goes to the first largest count.
    Every table must have a count above zero.
    """
    present = counts > 0
    free = SLOTS - present.sum(axis=1, keepdims=True)
    scaled = np.where(present, 1 + counts * free // counts.sum(axis=1, keepdims=True), 0)
    rows = np.arange(len(counts))
    scaled[rows, counts.argmax(axis=1)] += SLOTS - scaled.sum(axis=1)
    return scaled


def packed_tables(freq: NDArray[np.int64]) -> NDArray[np.uint32]:
    """[tables, 256] frequencies to [tables * 4096] words: all that a step needs lies in one, so that it looks up once.

    Bits 0 to 11: slot - start of its symbol; 12 to 19: the symbol; 20 to 31: frequency - 1.
    """
    return np.concatenate([_packed_table(row) for row in freq])


def _packed_table(freq: NDArray[np.int64]) -> NDArray[np.uint32]:
    word = np.maximum(freq - 1, 0) << _FREQUENCY | np.arange(256) << PRECISION
    offset = np.arange(SLOTS) - np.repeat(np.cumsum(freq) - freq, freq)
    packed: NDArray[np.uint32] = (np.repeat(word, freq) | offset).astype(np.uint32)
    return packed


class RansDecoder:
    """Reads the model at once, the words as needed. Damage raises what ``fail`` makes."""

    def __init__(self, read: Callable[[int], bytes], params: int, fail: Fail) -> None:
        self._read, self._fail = read, fail
        self._lanes, tables = unpack_params(params, fail)
        mapped, freq = self._model(tables)
        self._first = (mapped << PRECISION).astype(np.uint32)  # slot of each context's table
        self._table = packed_tables(freq)
        self._states = np.frombuffer(self._exactly(4 * self._lanes), "<u4").astype(np.uint32)
        self._lane = 0
        self._work = np.empty(self._lanes, np.uint32)
        self._below = np.empty(self._lanes, np.bool_)
        self._words = np.zeros(0, np.uint32)
        self._used = 0

    def read(self, size: int, contexts: NDArray[np.uint8] | None = None) -> bytes:
        """``contexts``: [size], the context of every symbol; None is context 0 for all."""
        found = self._first.take(contexts) if contexts is not None else np.full(size, self._first[0])
        position = 0
        while position < size:
            count = min(self._lanes - self._lane, size - position)
            self._step(found[position : position + count])
            position += count
        found >>= _SHIFT
        return found.astype(np.uint8).tobytes()

    def _step(self, found: NDArray[np.uint32]) -> None:
        """One symbol of each of the next lanes. ``found``: [lanes], where each one's table begins; receives its words."""
        count = len(found)
        state, work, below = self._states[self._lane : self._lane + count], self._work[:count], self._below[:count]
        np.bitwise_and(state, _SLOT, work)
        work += found
        # Every index is below the table's size; "clip" only spares take a copy of its output.
        self._table.take(work, out=found, mode="clip")
        state >>= _SHIFT
        np.right_shift(found, _FREQUENCY, work)
        work += _ONE
        state *= work
        np.bitwise_and(found, _SLOT, work)
        state += work
        low = np.less(state, _LOW, below).nonzero()[0]
        if low.size:
            fed = state.take(low)
            fed <<= _WORD
            fed |= self._next(low.size)
            state[low] = fed
        self._lane = (self._lane + count) % self._lanes

    def _next(self, count: int) -> NDArray[np.uint32]:
        if self._used + count > len(self._words):
            self._refill(count)
        self._used += count
        return self._words[self._used - count : self._used]

    def _refill(self, count: int) -> None:
        rest = self._words[self._used :]
        data = self._read(2 * WORDS_PER_READ)
        fresh = np.frombuffer(data[: len(data) & ~1], "<u2").astype(np.uint32)
        self._words, self._used = np.concatenate([rest, fresh]), 0
        if len(self._words) < count:
            raise self._fail("a rans stream ends early")

    def _model(self, tables: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        raw_bytes = CONTEXTS + 256 * tables
        stored = int.from_bytes(self._exactly(4), "little")
        if stored > raw_bytes + 64:
            raise self._fail(f"a rans model takes {stored} bytes for {tables} tables")
        raw = np.frombuffer(self._inflate(self._exactly(stored), raw_bytes), np.uint8)
        mapped, counts = raw[:CONTEXTS].astype(np.int64), counts_of(raw[CONTEXTS:]).reshape(tables, 256)
        if mapped.max() >= tables or not counts.any(axis=1).all():
            raise self._fail("a rans model names a table that is not there, or has an empty one")
        return mapped, frequencies(counts)

    def _inflate(self, data: bytes, size: int) -> bytes:
        try:
            raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=MODEL_FILTERS).decompress(data, max_length=size)
        except (lzma.LZMAError, EOFError) as error:
            raise self._fail(f"a rans model is damaged ({error})") from error
        if len(raw) != size:
            raise self._fail(f"a rans model has {len(raw)} bytes, expected {size}")
        return raw

    def _exactly(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) != size:
            raise self._fail("a rans stream is cut off")
        return data
