"""Coding streams: an estimate says which codecs are worth trying, the smallest of those is kept.

Adding a coder is one function here and its decoder in runtimes/artifact/delta.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.publish.delta.rans import Contexts, Model, encode_rans, lanes_log2, model_of
from compiler.publish.delta.streams import Stream
from runtimes.artifact.delta.codecs import CODECS, MIN_DICTIONARY_LOG2, lzma_filters
from runtimes.artifact.delta.format import Kind, stream_id

# Dictionaries cost memory on the device. Residuals repeat little over distance; literals (a whole file) do.
PLANE_DICTIONARY_LOG2 = 18
LITERAL_DICTIONARY_LOG2 = 22
# (lc, lp, pb): text-like; memoryless bytes; text without alignment; 4-byte elements.
_PROPERTIES = ((3, 0, 2), (0, 0, 0), (3, 0, 0), (0, 2, 2))
THOROUGH_BYTES = (
    1 << 16
)  # up to here everything is tried: LZMA2 codes about a megabyte of weights per second and setting
SAMPLE_BYTES = 1 << 16  # what estimates look at per slice: larger than deflate's window of 32 KiB
SAMPLES = 8
ESTIMATE_SYMBOLS = 1 << 18
SPARSE_BYTES = 1 << 12  # what deflates to this is so repetitive that LZMA2 is fast
RANS_BYTES = 1 << 9  # a model costs more than it saves below
BYTES_PER_LANE = 3  # beyond the entropy
MOST_GAIN = 1.3  # LZMA2 on what deflate makes of a small stream
NOISE = 0.97  # weights whose sample deflates to more than this are stored: LZMA2 would gain as little


@dataclass(frozen=True, slots=True)
class Coded:
    codec: str
    params: int
    data: bytes


def coded_streams(streams: Mapping[int, Stream]) -> dict[int, Coded]:
    """The smallest coding tried of each stream, by stream id in rising order.

    Ties go to the first, so that the same input gives the same bytes.
    """
    models = {stream: _model(*contents) for stream, contents in streams.items()}
    expected = {stream: model.bits / 8 if model else len(streams[stream][0]) for stream, model in models.items()}
    total = sum(expected.values())
    return {stream: _smallest(stream, *streams[stream], models[stream], total) for stream in sorted(streams)}


def _smallest(stream: int, raw: bytes, contexts: Contexts | None, model: Model | None, patch_bytes: float) -> Coded:
    """``contexts``: [len(raw)], what the decoder will know of each byte."""
    most = _modelled_bytes(model, model.bits, len(raw), patch_bytes) if model else float("inf")
    codings = list(_codings(stream, raw, most))
    if model and most < min(len(coded.data) for coded in codings):
        params, data = encode_rans(np.frombuffer(raw, np.uint8), _all(raw, contexts), model, patch_bytes)
        codings.append(Coded(CODECS.get("rans").name, params, data))
    return min(codings, key=lambda coded: len(coded.data))


def _model(raw: bytes, contexts: Contexts | None) -> Model | None:
    return model_of(np.frombuffer(raw, np.uint8), _all(raw, contexts)) if len(raw) >= RANS_BYTES else None


def _all(raw: bytes, contexts: Contexts | None) -> Contexts:
    return contexts if contexts is not None else np.zeros(len(raw), np.uint8)


def estimate(raw: bytes, contexts: Contexts | None) -> float:
    """Bytes that ``raw`` will take: the smaller of what its model says and what deflate makes of slices of it."""
    step = max(1, len(raw) // ESTIMATE_SYMBOLS)
    model = _model(raw[::step], contexts[::step] if contexts is not None else None)
    modelled = _modelled_bytes(model, step * model.bits, len(raw)) if model else len(raw)
    return min(modelled, _deflate_share(raw) * len(raw))


def _modelled_bytes(model: Model, bits: float, count: int, patch_bytes: float = 0.0) -> float:
    lanes = 1 << lanes_log2(bits / 8, max(patch_bytes, bits / 8), count)
    return bits / 8 + len(model.stored) + BYTES_PER_LANE * lanes


def _deflate_share(raw: bytes) -> float:
    if len(raw) <= SAMPLES * SAMPLE_BYTES:
        return len(zlib.compress(raw, 1)) / max(len(raw), 1)
    starts = np.linspace(0, len(raw) - SAMPLE_BYTES, SAMPLES).astype(int).tolist()
    made = sum(len(zlib.compress(raw[start : start + SAMPLE_BYTES], 1)) for start in starts)
    return float(made / (SAMPLES * SAMPLE_BYTES))


def _codings(stream: int, raw: bytes, most: float) -> Iterator[Coded]:
    """Codings that need no model; of large streams only those that may take less than ``most`` bytes."""
    yield Coded(CODECS.get("stored").name, 0, raw)
    limit = LITERAL_DICTIONARY_LOG2 if stream == stream_id(Kind.LITERAL) else PLANE_DICTIONARY_LOG2
    dictionary = min(limit, max(MIN_DICTIONARY_LOG2, len(raw).bit_length()))
    thorough = len(raw) <= THOROUGH_BYTES
    hopeless = min(NOISE * len(raw), max(most, SPARSE_BYTES)) * (MOST_GAIN if thorough else 1)
    if _deflate_share(raw) * len(raw) > hopeless:
        return
    for lc, lp, pb in _PROPERTIES if thorough else _PROPERTIES[1:2]:
        params = dictionary | lc << 8 | lp << 12 | pb << 16
        yield Coded(CODECS.get("lzma2").name, params, _lzma2(raw, params, thorough))
    if stream == stream_id(Kind.LITERAL):  # its decoder's 4.2 MB are spent once only
        yield Coded(CODECS.get("bzip2").name, 0, bz2.compress(raw, 9))


def _lzma2(raw: bytes, params: int, thorough: bool) -> bytes:
    [filters] = lzma_filters(params)
    search = {"mode": lzma.MODE_NORMAL, "mf": lzma.MF_BT4, "nice_len": 273, "depth": 512 if thorough else 8}
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=[filters | search])
