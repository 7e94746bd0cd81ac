"""Entropy codecs of delta streams: how to decode each, in steps of bounded memory.

Adding a codec is one class, one line in CODECS and a new wire id; old patches stay readable.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from profiles.registry import Registry
from runtimes.artifact.delta.rans import RansDecoder, memory_bytes, unpack_params
from runtimes.errors import DeltaError

MIN_DICTIONARY_LOG2: Final = 12
MAX_DICTIONARY_LOG2: Final = 24
READ_BYTES = 1 << 16

# Reads up to n compressed bytes of one stream; b"" at its end.
Source = Callable[[int], bytes]


class Decoder(Protocol):
    def read(self, size: int, contexts: NDArray[np.uint8] | None = None) -> bytes:
        """Exactly ``size`` decompressed bytes. Raises DeltaError if the stream is damaged or ends before.

        ``contexts``: [size], what is known of each byte (contexts.py); only some codecs look at it.
        """
        ...


class Codec(Protocol):
    """What CODECS holds. ``wire_id`` stands in patches; ``params`` is what the stream's table row carries.

    ``memory_bytes`` is an upper bound, known before anything is allocated. It raises DeltaError for params that it does not know.
    """

    name: str
    wire_id: int

    def memory_bytes(self, params: int) -> int: ...

    def decoder(self, source: Source, params: int) -> Decoder: ...


def lzma_filters(params: int) -> list[dict[str, Any]]:
    """Filter chain of a raw LZMA2 stream. ``params``: bits 0-7 log2 of the dictionary, 8-11 lc, 12-15 lp, 16-19 pb.

    Raises DeltaError for values outside of the format's limits (lc + lp <= 4, pb <= 4).
    """
    size, lc, lp, pb = params & 0xFF, params >> 8 & 15, params >> 12 & 15, params >> 16
    if not MIN_DICTIONARY_LOG2 <= size <= MAX_DICTIONARY_LOG2 or lc + lp > 4 or pb > 4:
        raise damaged(f"lzma2 parameters {params:#x} are out of range")
    return [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << size, "lc": lc, "lp": lp, "pb": pb}]


def damaged(reason: str) -> DeltaError:
    return DeltaError(
        f"The delta cannot be used: {reason}.", remedy="Fetch the delta again, or take the full artifact."
    )


class _Stored:
    name, wire_id = "stored", 0

    def memory_bytes(self, params: int) -> int:
        if params:
            raise damaged(f"stored streams have no parameters, found {params:#x}")
        return READ_BYTES * 2

    def decoder(self, source: Source, params: int) -> Decoder:
        return _StoredDecoder(source)


class _StoredDecoder:
    def __init__(self, source: Source) -> None:
        self._source = source

    def read(self, size: int, contexts: NDArray[np.uint8] | None = None) -> bytes:
        data = self._source(size)
        if len(data) != size:
            raise damaged("a stored stream ends early")
        return data


class _Stepwise:
    """Drives lzma's and bz2's decompressors, which share one interface. ``max_length`` keeps bombs from unfolding."""

    def __init__(self, source: Source, decompressor: lzma.LZMADecompressor | bz2.BZ2Decompressor) -> None:
        self._source = source
        self._decompressor = decompressor

    def read(self, size: int, contexts: NDArray[np.uint8] | None = None) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self._step(size)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _step(self, size: int) -> bytes:
        decompressor = self._decompressor
        if decompressor.eof:
            raise damaged("a compressed stream ends early")
        data = self._source(READ_BYTES) if decompressor.needs_input else b""
        if decompressor.needs_input and not data:
            raise damaged("a compressed stream is cut off")
        try:
            return decompressor.decompress(data, max_length=size)
        except (lzma.LZMAError, EOFError, ValueError, OSError) as error:  # bz2 reports damage as OSError
            raise damaged(f"a compressed stream is damaged ({error})") from error


class _Lzma2:
    name, wire_id = "lzma2", 1

    def memory_bytes(self, params: int) -> int:
        return int(lzma_filters(params)[0]["dict_size"]) + (1 << 17)

    def decoder(self, source: Source, params: int) -> Decoder:
        return _Stepwise(source, lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(params)))


class _Bzip2:
    name, wire_id = "bzip2", 2

    def memory_bytes(self, params: int) -> int:
        if params:
            raise damaged(f"bzip2 streams have no parameters, found {params:#x}")
        return 4_200_000  # 100k + 4 * 900k (the format's largest block), bzip2's manual, section 2.4

    def decoder(self, source: Source, params: int) -> Decoder:
        return _Stepwise(source, bz2.BZ2Decompressor())


class _Rans:
    name, wire_id = "rans", 3

    def memory_bytes(self, params: int) -> int:
        return memory_bytes(*unpack_params(params, damaged))

    def decoder(self, source: Source, params: int) -> Decoder:
        return RansDecoder(source, params, damaged)


CODECS: Registry[Codec] = Registry(
    "delta codec", how_to_add="Add a codec class in runtimes/artifact/delta/codecs.py and register it in CODECS."
)
for _codec in (_Stored(), _Lzma2(), _Bzip2(), _Rans()):
    CODECS.add(_codec.name, _codec)


def codec_by_id(wire_id: int) -> Codec:
    """Raises DeltaError for an id that this version does not know."""
    for name in CODECS:
        if CODECS.get(name).wire_id == wire_id:
            return CODECS.get(name)
    raise damaged(f"it uses codec {wire_id}, which this version does not know")
