"""Predictions that wait for their residuals, so that many small tensors are decoded in one go.

A step of rANS costs nearly the same for one lane as for all, and so does every other call of numpy: residuals are read when
64 Ki elements have come together, or when a predictor wants to see one of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta.codecs import Decoder, damaged
from runtimes.artifact.delta.contexts import Classes, Words
from runtimes.artifact.delta.format import WIDTH, Kind, stream_id
from runtimes.artifact.delta.predict import Prediction
from runtimes.artifact.delta.residuals import decode, words
from runtimes.artifact.delta.tokens import BitReader

CHUNK_ELEMENTS: Final = 1 << 16
MOST_PARTS: Final = 128  # ``holds`` looks at all of them for every segment

Chunk = tuple[int, bytes | memoryview]  # position in the result, what stands there
Ranges = tuple[tuple[int, int], ...]  # (start, end)


@dataclass(frozen=True, slots=True)
class Part:
    """What is predicted at ``position`` of the result, and the contexts of its residuals."""

    position: int
    made: Prediction
    contexts: Classes


class Residuals:
    """Reads one kind's residuals: tokens in their contexts, and the extra bits of elements wider than a byte."""

    def __init__(self, kind: Kind, decoders: dict[int, Decoder]) -> None:
        self._kind = kind
        self._tokens = decoders[stream_id(kind)]
        extra = decoders.get(stream_id(kind, 1))
        self._bits = BitReader(extra.read if extra else _nothing, damaged)

    def read(self, count: int, context: NDArray[Any]) -> Words:
        tokens = self._tokens.read(count, context)
        if WIDTH[self._kind] == 1:
            return words(tokens, self._kind)
        return self._bits.join(tokens, WIDTH[self._kind])


def _nothing(size: int) -> bytes:
    if size:
        raise damaged("tokens ask for extra bits, of which there is no stream")
    return b""


class Waiting:
    """Parts in their order. ``room``: elements that it still takes before it must be settled; 0 when it is full."""

    def __init__(self, readers: dict[Kind, Residuals]) -> None:
        self._readers = readers
        self._parts: dict[Kind, list[Part]] = defaultdict(list)
        self._ranges: list[tuple[int, int]] = []
        self.room = CHUNK_ELEMENTS

    def add(self, kind: Kind, part: Part) -> None:
        self._parts[kind].append(part)
        self._ranges.append((part.position, part.position + part.made.words.nbytes))
        self.room = self.room - len(part.made.words) if len(self._ranges) < MOST_PARTS else 0

    def holds(self, ranges: Ranges) -> bool:
        """Whether a byte of ``ranges`` is waiting."""
        return bool(ranges) and any(start < high and low < end for low, high in ranges for start, end in self._ranges)

    def settled(self) -> Iterator[Chunk]:
        """(position in the result, bytes) of all that waited; empty afterwards. Raises DeltaError for damaged streams."""
        parts, self._parts = self._parts, defaultdict(list)
        self._ranges.clear()
        self.room = CHUNK_ELEMENTS
        for kind, of_kind in parts.items():
            predicted, context = _joined([p.made.words for p in of_kind]), _joined([p.contexts for p in of_kind])
            residuals = self._readers[kind].read(len(predicted), context)
            data = memoryview(decode(predicted, residuals, kind, _mirrored(of_kind)).tobytes())
            start = 0
            for part in of_kind:
                yield part.position, data[start : start + part.made.words.nbytes]
                start += part.made.words.nbytes


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _mirrored(parts: list[Part]) -> NDArray[np.bool_] | None:
    if all(p.made.mirrored is None for p in parts):
        return None
    return _joined(
        [np.zeros(len(p.made.words), np.bool_) if p.made.mirrored is None else p.made.mirrored for p in parts]
    )
