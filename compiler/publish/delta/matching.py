"""Copies for what lies between tensors: graph structure, names, padding. Greedy, exact, deterministic.

A table maps 16-byte words of the base's gaps to its first place; the new file is scanned, and a hit is extended both ways.
Not a suffix array (bsdiff): the gaps are small, and tensors, which are large, are never searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from runtimes.artifact.delta.format import Kind, Segment

WORD_BYTES = 16
MIN_COPY_BYTES = 24  # a shorter copy costs more in the segment table than as literal
MAX_SCAN_BYTES = 16 << 20  # a scan takes about a second per MiB
MIN_STRIDE = 2  # every run of 17 bytes still holds a word of the table
MAX_WORDS = 1 << 19  # of the table: about 60 MiB

Span = tuple[int, int]  # start, end


def gaps_between(ranges: Sequence[Span], size: int) -> list[Span]:
    """The spans of [0, size) that no range covers. ``ranges`` are sorted and disjoint."""
    edges = [0, *(edge for span in ranges for edge in span), size]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


class Matcher:
    """Finds spans of a new file in the gaps of ``base``."""

    def __init__(self, base: bytes, gaps: Sequence[Span]) -> None:
        self._base, self._gaps = base, gaps

    @cached_property
    def _words(self) -> dict[bytes, int]:
        """Made when first asked for: between tensors that did not move, everything is mostly as it was."""
        base, words = self._base, dict[bytes, int]()
        total = sum(end - start for start, end in self._gaps)
        stride = max(MIN_STRIDE, -(-total // MAX_WORDS))
        for start, end in self._gaps:
            for offset in range(start, end - WORD_BYTES + 1, stride):
                words.setdefault(base[offset : offset + WORD_BYTES], offset)
        return words

    def segments(self, new: bytes, start: int, end: int) -> list[Segment]:
        """COPY and LITERAL segments that make ``new[start:end]``."""
        result: list[Segment] = []
        if end - start < MIN_COPY_BYTES:
            _add_literal(result, start, end)
            return result
        literal = position = start
        scan_end = end if end - start <= MAX_SCAN_BYTES else start
        while position + WORD_BYTES <= scan_end:
            offset = self._words.get(new[position : position + WORD_BYTES])
            if offset is None:
                position += 1
                continue
            back = self._backward(new, literal, position, offset)
            size = back + self._forward(new, position, end, offset)
            if size < MIN_COPY_BYTES:
                position += 1
                continue
            _add_literal(result, literal, position - back)
            result.append(Segment(Kind.COPY, offset - back, size, position - back))
            literal = position = position - back + size
        _add_literal(result, literal, end)
        return result

    def _forward(self, new: bytes, position: int, end: int, offset: int) -> int:
        """Length of the common run from here, found by doubling steps so that long runs compare in C."""
        base, size, step = self._base, 0, WORD_BYTES
        limit = min(end - position, len(base) - offset)
        while step:
            step = min(step, limit - size)
            if step and new[position + size : position + size + step] == base[offset + size : offset + size + step]:
                size += step
                step *= 2
            else:
                step //= 2
        return size

    def _backward(self, new: bytes, floor: int, position: int, offset: int) -> int:
        size = 0
        while (
            position - size > floor and offset - size > 0 and new[position - size - 1] == self._base[offset - size - 1]
        ):
            size += 1
        return size


def _add_literal(segments: list[Segment], start: int, end: int) -> None:
    if end > start:
        segments.append(Segment(Kind.LITERAL, 0, end - start, start))
