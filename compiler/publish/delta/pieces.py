"""One residual segment in numbers: its prediction, residuals, classes and contexts, as the decoder will see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta import predict
from runtimes.artifact.delta.contexts import BYTE_CLASSES, SIZES, Classes, Words, contexts, exponents
from runtimes.artifact.delta.format import ORDERED, WIDTH, Kind, Predictor, Segment
from runtimes.artifact.delta.predict import RATIO_ONE, Layout, Prediction
from runtimes.artifact.delta.residuals import encode, words

Steps = NDArray[np.int16]
_POWERS = np.exp2(np.arange(256))
CLASS_COST_BITS = 4.0  # of a channel's class, after coding: measured 2.5 to 4
FITTING_COST_BITS = 1.0  # a class fitted to few residuals says less of them than it seems


@dataclass(frozen=True, slots=True)
class Piece:
    """``classes``: bytes of the stream CLASSES. ``steps``: [channels] of the stream RATIOS, or None."""

    residuals: Words
    contexts: Classes
    classes: Classes
    steps: Steps | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A prediction of ``segment`` and what it leaves, before classes."""

    segment: Segment
    made: Prediction
    residuals: Words
    steps: Steps | None


def attempt(base: bytes, new: bytes, segment: Segment) -> Attempt:
    steps = ratio_steps(base, new, segment) if segment.predictor is Predictor.RATIO else None
    made = _prediction(base, new, segment, steps)
    residuals = encode(made.words, _words(new, segment.result, segment), segment.kind, made.mirrored)
    return Attempt(segment, made, residuals, steps)


def piece(base: bytes, new: bytes, segment: Segment) -> Piece:
    """All that the streams need of ``segment``."""
    tried = attempt(base, new, segment)
    classes = _classes(tried.residuals, tried.made.words, segment)
    context = contexts(tried.made.known, segment.kind, _spread(classes, segment))
    return Piece(tried.residuals, context, _stored(classes) if segment.per_channel else classes, tried.steps)


def _words(data: bytes, offset: int, segment: Segment) -> Words:
    return words(memoryview(data)[offset : offset + segment.size], segment.kind)


def _floats(data: bytes, offset: int, count: int) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4", count, offset)


def _spread(values: NDArray[Any], segment: Segment) -> NDArray[Any]:
    return Layout(segment.channels, segment.inner).spread(values, 0, segment.size // WIDTH[segment.kind])


def _prediction(base: bytes, new: bytes, segment: Segment, steps: Steps | None) -> Prediction:
    kind, count = segment.kind, segment.size // WIDTH[segment.kind]
    match segment.predictor:
        case Predictor.RESCALE:
            old, now = (_floats(d, at, segment.channels) for d, at in ((base, segment.left), (new, segment.right)))
            ratio = _spread(predict.ratios_of(old, now, kind), segment)
            return predict.rescaled(_words(base, segment.base, segment), kind, ratio)
        case Predictor.PRODUCT:
            scales = np.broadcast_to(_spread(_floats(new, segment.left, segment.channels), segment), (count,))
            return predict.product(scales, _floats(new, segment.right, 1))
    before = _words(base, segment.base, segment)
    if steps is not None:
        return predict.ratioed(before, kind, _spread(steps, segment))
    return predict.plain(before)


def ratio_steps(base: bytes, new: bytes, segment: Segment) -> Steps:
    """[channels] the k of RATIO: least squares of new on old, over finite elements."""
    form = "<f2" if segment.kind is Kind.ORDERED16 else "<f4"
    with np.errstate(all="ignore"):
        old, now = (
            _words(d, at, segment).view(form).astype(np.float64)
            for d, at in ((base, segment.base), (new, segment.result))
        )
        product, square = _sums(old * now, segment), _sums(old * old, segment)
        if not np.isfinite([product.sum(), square.sum()]).all():
            good = np.isfinite(old) & np.isfinite(now)
            old, now = np.where(good, old, 0.0), np.where(good, now, 0.0)
            product, square = _sums(old * now, segment), _sums(old * old, segment)
        ratio = product / np.maximum(square, 1e-300)
    steps: Steps = np.clip(np.rint((ratio - 1) * RATIO_ONE), -RATIO_ONE // 2, 3 * RATIO_ONE).astype(np.int16)
    return steps


def _sums(values: NDArray[Any], segment: Segment) -> NDArray[np.float64]:
    """[channels] sums of [n] values."""
    period = segment.channels * segment.inner
    made: NDArray[np.float64]
    if values.size % period == 0:
        made = values.reshape(-1, segment.channels, segment.inner).sum(axis=(0, 2), dtype=np.float64)
    else:
        channel = np.broadcast_to(_spread(np.arange(segment.channels), segment), values.shape)
        made = np.bincount(channel, values, segment.channels).astype(np.float64)
    return made


def _counts(segment: Segment) -> NDArray[np.float64]:
    """[channels] elements of each channel."""
    total, row = segment.size // WIDTH[segment.kind], segment.inner * segment.channels
    rest = total % row - np.arange(segment.channels) * segment.inner
    return total // row * segment.inner + np.clip(rest, 0, segment.inner).astype(np.float64)


def _median(values: NDArray[np.int16]) -> float:
    """Of numbers from 0 to a few hundred: numpy's sorts."""
    places = np.searchsorted(np.cumsum(np.bincount(values)), [(len(values) + 1) // 2, len(values) // 2 + 1])
    return float(places.mean())


def _magnitudes(residuals: Words, base: Words, kind: Kind) -> NDArray[np.float64]:
    """[n] what the class measures: |difference|, of floats in units of the lowest exponent's last place."""
    magnitude = ((residuals >> residuals.dtype.type(1)) + (residuals & residuals.dtype.type(1))).astype(np.float64)
    return magnitude * _POWERS.take(exponents(base, kind)) if kind in ORDERED else magnitude


def _classes(residuals: Words, base: Words, segment: Segment) -> Classes:
    """[channels] or [1]: twice the logarithm of the mean magnitude."""
    magnitude = _magnitudes(residuals, base, segment.kind)
    if segment.per_channel:
        mean = _sums(magnitude, segment) / np.maximum(_counts(segment), 1)
    else:
        mean = np.array([magnitude.mean()])
    return class_of(mean, segment.kind)


def class_of(mean: NDArray[np.float64], kind: Kind) -> Classes:
    """Half octaves; 8 is one step for bytes, which begin at a sixteenth, 2 is one for wider integers."""
    offset, most = (0, 255) if kind in ORDERED else (8, BYTE_CLASSES - 1) if kind is Kind.DIFF8 else (2, SIZES - 1)
    half_octaves = np.rint(2 * np.log2(np.maximum(mean, 1e-9))) + offset
    classes: Classes = np.clip(half_octaves, 0, most).astype(np.uint8)
    return classes


def _stored(classes: Classes) -> Classes:
    """The mean class, then the differences to it."""
    first = np.uint8(np.rint(classes.mean()))
    return np.concatenate([[first], classes - first]).astype(np.uint8)


def channel_gain(tried: Attempt, segment: Segment) -> float:
    """Bits that a class per channel saves, its own cost subtracted. ``segment``: ``tried``'s, with the channels to try."""
    residuals, made = tried.residuals, tried.made
    magnitude = _magnitudes(residuals, made.words, segment.kind)
    if segment.kind in ORDERED:  # back to steps of the typical exponent
        magnitude /= np.exp2(_median(exponents(made.words, segment.kind)))
    counts = _counts(segment)
    together = len(residuals) * float(_laplace_bits(np.array([magnitude.mean()]))[0])
    apart = float((counts * _laplace_bits(_sums(magnitude, segment) / np.maximum(counts, 1))).sum())
    return together - apart - (CLASS_COST_BITS + FITTING_COST_BITS) * segment.channels


def _laplace_bits(mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of a number whose magnitude is geometric with that mean, and of its sign where it is not zero."""
    m = np.maximum(mean, 1e-9)
    bits: NDArray[np.float64] = (1 + m) * np.log2(1 + m) - m * np.log2(m) + m / (1 + m)
    return bits
