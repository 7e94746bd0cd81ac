"""The encoder of runtimes/artifact/delta/rans.py: counts by context, few tables, then lanes from the last symbol to the first."""

from __future__ import annotations

import lzma
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta.rans import (
    CONTEXTS,
    LOW,
    MAX_LANES_LOG2,
    MAX_TABLES,
    MODEL_FILTERS,
    PRECISION,
    SLOTS,
    counts_of,
    frequencies,
)

Symbols = NDArray[np.uint8]
Contexts = NDArray[np.uint8]

SYMBOL_COST_BITS = 7.0  # a count in a table, after LZMA2: measured 5 to 8
# A lane costs about three bytes beyond the entropy, a step of the decoder about 10 us, however few its lanes are. A step may
# cost a 100,000th of the patch, all lanes three percent of it and four of
# their own stream; where almost everything is zero, decoding speed decides.
BYTES_PER_ROOT = 320_000
PATCH_BYTES_PER_LANE, STREAM_BYTES_PER_LANE = 100, 72
SYMBOLS_PER_LANE = 8192
_CODED_COUNTS = counts_of(np.arange(256, dtype=np.uint8))


@dataclass(frozen=True, slots=True)
class Model:
    """``codes``: [tables, 256] counts in their one-byte form. ``table``: [CONTEXTS] index of the table of each context."""

    table: NDArray[np.int64]
    codes: NDArray[np.uint8]
    bits: float  # what the symbols that it was made from will take
    stored: bytes  # both, as the stream holds them


def model_of(symbols: Symbols, contexts: Contexts) -> Model:
    """Tables for ``symbols`` [n] in ``contexts`` [n]: contexts are merged while a table costs more than it saves."""
    present, counts = _counts(symbols, contexts)
    order = np.argsort(counts @ np.arange(256) / counts.sum(axis=1), kind="stable")
    groups = _merge(counts[order].astype(np.float64))
    table = np.zeros(CONTEXTS, np.int64)
    table[present[order]] = groups
    table = _filled(table, present)
    merged = np.zeros((int(groups.max()) + 1, 256), np.int64)
    np.add.at(merged, groups, counts[order])
    codes = _coded(merged)
    share = frequencies(counts_of(codes)) / (1 << PRECISION)
    bits = -(merged * np.log2(np.where(merged > 0, share, 1.0))).sum()
    raw = table.astype(np.uint8).tobytes() + codes.tobytes()
    return Model(table, codes, float(bits), lzma.compress(raw, lzma.FORMAT_RAW, filters=MODEL_FILTERS))


def encode_rans(symbols: Symbols, contexts: Contexts, model: Model, patch_bytes: float = 0.0) -> tuple[int, bytes]:
    """(params, stored bytes). ``patch_bytes``: about what the whole patch will take, if this is only a part of one."""
    log2 = lanes_log2(model.bits / 8, max(patch_bytes, model.bits / 8), len(symbols))
    states, words = _code(symbols, model.table[contexts], model, 1 << log2)
    stored = model.stored
    data = len(stored).to_bytes(4, "little") + stored + states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
    return log2 | len(model.codes) << 8, data


def lanes_log2(stream_bytes: float, patch_bytes: float, count: int) -> int:
    """Lanes for ``count`` symbols of a stream and a patch of those sizes."""
    most = min(patch_bytes / PATCH_BYTES_PER_LANE, stream_bytes / STREAM_BYTES_PER_LANE)
    balanced = min((count * patch_bytes / BYTES_PER_ROOT) ** 0.5, most)
    return min(round(math.log2(max(balanced, count / SYMBOLS_PER_LANE, 1))), MAX_LANES_LOG2)


def _code(
    symbols: Symbols, table: NDArray[np.int64], model: Model, lanes: int
) -> tuple[NDArray[np.float64], NDArray[np.uint16]]:
    """(states [lanes], words). All in float64, which holds every state exactly and divides eight times as fast as integers.

    floor(state / f) is exact: a quotient that is no integer lies 2^-12 or more below one, its rounding error is below 2^-20.
    """
    freq = frequencies(counts_of(model.codes))
    freqs, starts = freq.astype(np.float64).ravel(), (np.cumsum(freq, axis=1) - freq).astype(np.float64).ravel()
    row = (table << 8) | symbols
    states = np.full(lanes, float(LOW))
    words: list[NDArray[np.float64]] = []
    for first in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        rows = row[first : first + lanes]
        f, state = freqs.take(rows), states[: len(rows)]
        full = np.flatnonzero(state >= f * (LOW << (16 - PRECISION)))
        above = state.take(full)
        kept = np.floor(above / LOW)
        words.append(above - kept * LOW)
        state[full] = kept
        state += np.floor(state / f) * (SLOTS - f)
        state += starts.take(rows)
    return states, np.concatenate([*words[::-1], np.zeros(0)]).astype(np.uint16)


def _counts(symbols: Symbols, contexts: Contexts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(contexts that occur [k], counts [k, 256])."""
    flat = np.bincount(contexts.astype(np.uint16) << 8 | symbols, minlength=256 * CONTEXTS).reshape(-1, 256)
    present = np.flatnonzero(flat.any(axis=1))
    return present, flat[present].astype(np.int64)


def _merge(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Group index [k] of every row: neighbours are joined, the cheapest pair first, until each table earns its cost."""
    rows, sizes = list(counts), [1] * len(counts)
    alone = [_cost(row) for row in rows]
    joined = [_cost(a + b) for a, b in pairwise(rows)]
    while len(rows) > 1:
        gains = [alone[i] + alone[i + 1] - joined[i] for i in range(len(joined))]
        best = int(np.argmax(gains))
        if gains[best] < 0 and len(rows) <= MAX_TABLES:
            break
        rows[best : best + 2] = [rows[best] + rows[best + 1]]
        sizes[best : best + 2] = [sizes[best] + sizes[best + 1]]
        alone[best : best + 2] = [joined.pop(best)]
        for i in (best - 1, best):
            if 0 <= i < len(joined):
                joined[i] = _cost(rows[i] + rows[i + 1])
    return np.repeat(np.arange(len(rows)), sizes)


def _cost(counts: NDArray[np.float64]) -> float:
    """Bits of the symbols and of their table."""
    present = counts[counts > 0]
    return float(SYMBOL_COST_BITS * (len(present) + 1) - (present * np.log2(present / present.sum())).sum())


def _filled(table: NDArray[np.int64], present: NDArray[np.int64]) -> NDArray[np.int64]:
    """Contexts that do not occur repeat the one before them, which costs LZMA2 nothing."""
    last = np.maximum.accumulate(np.where(np.isin(np.arange(CONTEXTS), present), np.arange(CONTEXTS), -1))
    return np.where(last >= 0, table[np.maximum(last, 0)], table[present[0]])


def _coded(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One-byte form of counts: the nearest coded count at or below, and never zero for a symbol that occurs."""
    largest = counts.max(axis=1, keepdims=True)
    fitted = np.where(largest > _CODED_COUNTS[-1], counts * _CODED_COUNTS[-1] // largest, counts)
    codes = np.searchsorted(_CODED_COUNTS, np.maximum(fitted, counts > 0), side="right") - 1
    made: NDArray[np.uint8] = codes.astype(np.uint8)
    return made
