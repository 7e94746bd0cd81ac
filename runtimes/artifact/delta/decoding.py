"""Segments to bytes of the result, one chunk after the other: what the loop of ``apply_delta`` runs over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta import predict
from runtimes.artifact.delta.codecs import Decoder, damaged
from runtimes.artifact.delta.contexts import Classes, Words, contexts
from runtimes.artifact.delta.format import CLASSES, RATIOS, WIDTH, Kind, Predictor, Segment, stream_id
from runtimes.artifact.delta.predict import Layout, Prediction, plain
from runtimes.artifact.delta.residuals import words
from runtimes.artifact.delta.waiting import Chunk, Part, Residuals, Waiting

COPY_BYTES: Final = 1 << 17


def read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    """Exactly ``size`` bytes. Raises DeltaError where the file ends before."""
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise damaged(f"{size} bytes were expected at offset {offset}, {len(data)} are there")
    return data


@dataclass(frozen=True, slots=True)
class Decoding:
    """One decoding. ``sink``: the result, readable; what a predictor reads of it was written before, or is zero."""

    segments: list[Segment]
    base: IO[bytes]
    sink: IO[bytes]
    decoders: dict[int, Decoder]

    def chunks(self) -> Iterator[Chunk]:
        """(position in the result, bytes). What was given is in ``sink`` when the next one is asked for."""
        kinds = {segment.kind for segment in self.segments} & WIDTH.keys()
        waiting = Waiting({kind: Residuals(kind, self.decoders) for kind in kinds})
        for segment in self.segments:
            if waiting.holds(segment.operands_in_result):
                yield from waiting.settled()
            if segment.kind in WIDTH:
                yield from self._residual(segment, waiting)
            else:
                yield from self._bytes(segment)
        yield from waiting.settled()

    def _bytes(self, segment: Segment) -> Iterator[Chunk]:
        for start in range(0, segment.size, COPY_BYTES):
            size = min(COPY_BYTES, segment.size - start)
            copied = segment.kind is Kind.COPY
            data = read_at(self.base, segment.base + start, size) if copied else self.decoders[_LITERAL].read(size)
            yield segment.result + start, data

    def _residual(self, segment: Segment, waiting: Waiting) -> Iterator[Chunk]:
        width = WIDTH[segment.kind]
        predicted, classes = self._predictor(segment), self._classes(segment)
        layout = Layout(segment.channels, segment.inner)
        total = segment.size // width
        start = 0
        while start < total:
            count = min(waiting.room, total - start)
            made = predicted(start, count)
            known = contexts(made.known, segment.kind, layout.spread(classes, start, count))
            waiting.add(segment.kind, Part(segment.result + start * width, made, known))
            start += count
            if not waiting.room:
                yield from waiting.settled()

    def _classes(self, segment: Segment) -> Classes:
        """[channels], or [1] for the whole segment. With more than one they are stored as differences to the first byte."""
        stored = np.frombuffer(self.decoders[CLASSES].read(segment.class_bytes), np.uint8)
        return stored[1:] + stored[0] if segment.per_channel else stored

    def _predictor(self, segment: Segment) -> Callable[[int, int], Prediction]:
        """A function from (first element, number of elements) to their prediction."""
        layout, kind, width = Layout(segment.channels, segment.inner), segment.kind, WIDTH[segment.kind]

        def base(start: int, count: int) -> Words:
            return words(read_at(self.base, segment.base + start * width, count * width), kind)

        match segment.predictor:
            case Predictor.RESCALE:
                old = _floats(self.base, segment.left, segment.channels)
                ratio = predict.ratios_of(old, _floats(self.sink, segment.right, segment.channels), kind)
                return lambda i, n: predict.rescaled(base(i, n), kind, layout.spread(ratio, i, n))
            case Predictor.PRODUCT:
                scales = _floats(self.sink, segment.left, segment.channels)
                scalar = _floats(self.sink, segment.right, 1)
                return lambda i, n: predict.product(np.broadcast_to(layout.spread(scales, i, n), (n,)), scalar)
            case Predictor.RATIO:
                steps = np.frombuffer(self.decoders[RATIOS].read(2 * segment.channels), "<i2")
                return lambda i, n: predict.ratioed(base(i, n), kind, layout.spread(steps, i, n))
        return lambda i, n: plain(base(i, n))


_LITERAL: Final = stream_id(Kind.LITERAL)


def _floats(file: IO[bytes], offset: int, count: int) -> NDArray[np.float32]:
    return np.frombuffer(read_at(file, offset, 4 * count), "<f4")
