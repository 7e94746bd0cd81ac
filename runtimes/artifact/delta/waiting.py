"""Predictions that wait for their residuals, so that many small tensors are decoded in one go.

A step of rANS costs nearly the same for one lane as for all, and so does every other call of numpy: residuals are read when
64 Ki elements have come together, or when a predictor wants to see one of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta.codecs import Decoder, damaged
from runtimes.artifact.delta.contexts import Words
from runtimes.artifact.delta.format import WIDTH, Kind, stream_id
from runtimes.artifact.delta.predict import Prediction
from runtimes.artifact.delta.residuals import decode, words
from runtimes.artifact.delta.tokens import BitReader

CHUNK_ELEMENTS: Final = 1 << 16
MOST_PARTS: Final = 128  # ``holds`` looks at all of them for every segment

Part = tuple[int, Prediction]  # position in the result, what is predicted there
Ranges = tuple[tuple[int, int], ...]  # (start, end)


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

    def add(self, kind: Kind, position: int, made: Prediction) -> None:
        self._parts[kind].append((position, made))
        self._ranges.append((position, position + made.words.nbytes))
        self.room = self.room - len(made.words) if len(self._ranges) < MOST_PARTS else 0

    def holds(self, ranges: Ranges) -> bool:
        """Whether a byte of ``ranges`` is waiting."""
        return any(start < high and low < end for low, high in ranges for start, end in self._ranges)

    def settled(self) -> Iterator[tuple[int, bytes]]:
        """(position in the result, bytes) of all that waited; empty afterwards. Raises DeltaError for damaged streams."""
        parts, self._parts = self._parts, defaultdict(list)
        self._ranges.clear()
        self.room = CHUNK_ELEMENTS
        for kind, of_kind in parts.items():
            made = together([prediction for _, prediction in of_kind])
            residuals = self._readers[kind].read(len(made.words), made.context)
            data = memoryview(decode(made.words, residuals, kind, made.mirrored).tobytes())
            start = 0
            for position, prediction in of_kind:
                yield position, data[start : start + prediction.words.nbytes]
                start += prediction.words.nbytes


def together(made: list[Prediction]) -> Prediction:
    """One prediction of all elements."""
    if len(made) == 1:
        return made[0]
    mirrored = None
    if any(m.mirrored is not None for m in made):
        mirrored = np.concatenate([np.zeros(len(m.words), np.bool_) if m.mirrored is None else m.mirrored for m in made])
    return Prediction(np.concatenate([m.words for m in made]), np.concatenate([m.context for m in made]), mirrored)
