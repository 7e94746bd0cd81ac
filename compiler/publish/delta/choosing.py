"""The cheapest way to say one tensor: copy, residuals on one of several predictions, or (by estimated entropy) literal."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compiler.publish.delta.pairing import Pairs
from compiler.publish.delta.pieces import Attempt, attempt, channel_gain
from compiler.publish.delta.walkers import TensorRange
from runtimes.artifact.delta.contexts import Words
from runtimes.artifact.delta.format import MAX_CHANNELS, Kind, Predictor, Segment
from runtimes.artifact.delta.predict import Layout
from runtimes.artifact.delta.tokens import extra_bits, tokens_of

RATIO_COST_BITS = 12.0  # of one ratio: measured 9 to 13
OPERAND_COST_BITS = 80.0  # of a predictor's place in the segment table
MIN_CHANNELS = 2
MIN_RESIDUAL_BYTES = 16  # a scalar's segment and class take more than its residual saves
LITERAL_SHARE, LITERAL_LEVEL = 0.75, 1  # residuals below that share are never worse than literals of weights
LIKELY_PRODUCT = 1e-6  # relative: scalars further from the quotient of two scales are not tried


class Chooser:
    """``pairs``: where tensors of the new file come from."""

    def __init__(self, base: bytes, new: bytes, pairs: Pairs, new_tensors: list[TensorRange]) -> None:
        self._base, self._new, self._pairs = base, new, pairs
        self._by_key = {tensor.key: tensor for tensor in new_tensors}
        self._products = dict(_products(new, new_tensors))

    def segment(self, tensor: TensorRange) -> Segment:
        old = self._pairs.get(tensor.offset)
        literal = Segment(Kind.LITERAL, 0, tensor.size, tensor.offset)
        after = self._new[tensor.offset : tensor.offset + tensor.size]
        if old is not None and self._base[old.offset : old.offset + old.size] == after:
            return Segment(Kind.COPY, old.offset, tensor.size, tensor.offset)
        if tensor.offset in self._products:
            return self._products[tensor.offset]
        if old is None or tensor.size < MIN_RESIDUAL_BYTES:
            return literal
        options = (attempt(self._base, self._new, option) for option in self._options(old, tensor))
        bits, best = min(((_bits(tried), tried) for tried in options), key=lambda found: found[0])
        if bits >= LITERAL_SHARE * 8 * tensor.size and bits >= 8 * len(zlib.compress(after, LITERAL_LEVEL)):
            return literal
        return _with_classes(best, tensor)

    def _options(self, old: TensorRange, tensor: TensorRange) -> Iterator[Segment]:
        plain = Segment(tensor.kind, old.offset, tensor.size, tensor.offset)
        yield plain
        if tensor.kind in (Kind.DIFF8, Kind.DIFF32):
            yield from self._rescaled(plain, old, tensor)
        elif tensor.kind in (Kind.ORDERED16, Kind.ORDERED32):
            for layout in _layouts(tensor):
                yield replace(plain, predictor=Predictor.RATIO, channels=layout.channels, inner=layout.inner)

    def _rescaled(self, plain: Segment, old: TensorRange, tensor: TensorRange) -> Iterator[Segment]:
        """Where both files tell the scales, and these moved."""
        now = self._by_key.get(tensor.scale or "")
        before = self._pairs.get(now.offset) if now is not None else None
        if now is None or before is None or old.scale != before.key:
            return
        if self._base[before.offset : before.offset + before.size] == self._new[now.offset : now.offset + now.size]:
            return
        channels = now.elements
        layout = tensor.layout(tensor.axis or 0) if channels > 1 and tensor.dims else Layout(1, 1)
        if layout.channels == channels <= MAX_CHANNELS:
            yield replace(
                plain,
                predictor=Predictor.RESCALE,
                left=before.offset,
                right=now.offset,
                channels=channels,
                inner=layout.inner,
            )


def _bits(tried: Attempt) -> float:
    segment = tried.segment
    cost = {Predictor.BASE: 0.0, Predictor.RATIO: RATIO_COST_BITS * segment.channels}
    return residual_bits(tried.residuals) + cost.get(segment.predictor, OPERAND_COST_BITS)


def _with_classes(tried: Attempt, tensor: TensorRange) -> Segment:
    """One class per channel where that saves more than it costs."""
    best = tried.segment
    if best.kind is Kind.DIFF4:
        return best
    if best.predictor is not Predictor.BASE:
        options = [replace(best, per_channel=True)] if best.channels >= MIN_CHANNELS else []
    else:
        options = [replace(best, per_channel=True, channels=x.channels, inner=x.inner) for x in _layouts(tensor)]
    gains = [channel_gain(tried, option) for option in options]
    return options[int(np.argmax(gains))] if gains and max(gains) > 0 else best


def _layouts(tensor: TensorRange) -> list[Layout]:
    """Axes that may be the channels': the known one, else the first and the last."""
    if len(tensor.dims) < 2:
        return []
    axes = [tensor.axis] if tensor.axis is not None else [0, len(tensor.dims) - 1]
    layouts = [tensor.layout(axis) for axis in axes]
    return [x for x in layouts if MIN_CHANNELS <= x.channels <= min(MAX_CHANNELS, tensor.elements // 2)]


def _products(new: bytes, tensors: list[TensorRange]) -> Iterator[tuple[int, Segment]]:
    """Vectors that are exactly another vector times a scalar of the file, both earlier in the list of those that stand alone.

    Found by content, so that every format's bias scales are (input scale * weight scale, ONNX's QLinearConv and
    LiteRT's quantization specification).
    """
    floats = [t for t in tensors if t.kind is Kind.ORDERED32]
    vectors: dict[int, list[TensorRange]] = defaultdict(list)
    for t in floats:
        if MIN_CHANNELS <= t.elements <= MAX_CHANNELS:
            vectors[t.elements].append(t)
    scalars = [t for t in floats if t.elements == 1]
    if not scalars:
        return
    values = np.array([np.frombuffer(new, "<f4", 1, t.offset)[0] for t in scalars])
    for group in vectors.values():
        arrays = [np.frombuffer(new, "<f4", t.elements, t.offset) for t in group]
        derived: set[int] = set()
        for i, target in enumerate(group):
            found = _product_of(i, arrays, values, derived)
            if found is not None:
                derived.add(i)
                source, scalar = group[found[0]], scalars[found[1]]
                yield (
                    target.offset,
                    Segment(
                        Kind.ORDERED32,
                        0,
                        target.size,
                        target.offset,
                        Predictor.PRODUCT,
                        left=source.offset,
                        right=scalar.offset,
                        channels=target.elements,
                    ),
                )


def _product_of(
    target: int, arrays: list[NDArray[np.float32]], scalars: NDArray[np.float32], derived: set[int]
) -> tuple[int, int] | None:
    """(index of the vector, of the scalar) whose product is the target; the target is smaller than the vector."""
    for source, values in enumerate(arrays):
        if source == target or source in derived:
            continue
        with np.errstate(all="ignore"):
            quotient = np.float64(arrays[target][0]) / np.float64(values[0])
            for scalar in np.flatnonzero(np.abs(scalars / quotient - 1) < LIKELY_PRODUCT):
                if np.array_equal(values * scalars[scalar], arrays[target]):
                    return source, int(scalar)
    return None


def residual_bits(residuals: Words) -> float:
    """Order-0 entropy of bytes or of tokens, with the extra bits of those."""
    if residuals.itemsize == 1:
        return plane_bits(residuals.astype(np.uint8))
    tokens = tokens_of(residuals)
    return plane_bits(tokens) + extra_bits(tokens)


def plane_bits(plane: NDArray[np.uint8]) -> float:
    """-sum(n_i * log2(n_i / n))."""
    counts = np.bincount(plane)
    present = counts[counts > 0]
    return float(-(present * np.log2(present / present.sum())).sum())
