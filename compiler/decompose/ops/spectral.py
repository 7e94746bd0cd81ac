"""Fourier transforms along an axis of fixed length, as products with the matrices of cosines and sines."""

from __future__ import annotations

import numpy as np

from compiler.decompose.builder import Builder
from compiler.decompose.table import Undecomposable, decomposes

MAX_LENGTH = 4096  # a matrix of 64 MiB


@decomposes("DFT")
def dft(b: Builder) -> None:
    """X[k] = sum_n x[n] e^(-2 pi i k n / N); the inverse has the other sign and 1/N (opset 20: the axis is an input)."""
    length_operand, axis_operand = b.operand(1), b.operand(2)
    for operand in (length_operand, axis_operand):
        if operand is not None and operand.constant is None:
            raise Undecomposable("its length or axis is computed at run time")
    rank = len(b.x.shape)
    axis = -2 if axis_operand is None else int(np.asarray(axis_operand.constant).ravel()[0])
    axis %= rank
    size = b.x.shape[axis]
    length = size if length_operand is None else int(np.asarray(length_operand.constant).ravel()[0])
    if max(length, size) > MAX_LENGTH or b.x.dtype != np.float32:
        raise Undecomposable("it is too long, or not float32")
    inverse, one_sided = b.attribute("inverse", 0), b.attribute("onesided", 0)
    if inverse and one_sided:
        _real_inverse(b, axis, None if length_operand is None else length)
        return
    bins = length // 2 + 1 if one_sided else length
    used = min(size, length)
    phase = 2 * np.pi * np.outer(np.arange(used), np.arange(bins)) / length
    scale = 1 / length if inverse else 1.0
    cosine = (np.cos(phase) * scale).astype(np.float32)
    sine = (np.sin(phase) * scale * (1 if inverse else -1)).astype(np.float32)
    order = [i for i in range(rank - 1) if i != axis] + [axis]

    def part(index: int) -> str:
        taken = b.take(b.take(b.x.name, rank - 1, index, index + 1), axis, 0, used)
        shape = [used if i == axis else s for i, s in enumerate(b.x.shape[:-1])]
        return b.transpose(b.reshape(taken, shape), order)

    real = part(0)
    re, im = b.op("MatMul", real, cosine), b.op("MatMul", real, sine)
    if b.x.shape[-1] == 2:
        imaginary = part(1)
        re = b.op("Sub", re, b.op("MatMul", imaginary, sine))
        im = b.op("Add", im, b.op("MatMul", imaginary, cosine))
    back = [order.index(i) for i in range(rank - 1)]
    shape = [*(bins if i == axis else s for i, s in enumerate(b.x.shape[:-1])), 1]
    b.output(b.op("Concat", *(b.reshape(b.transpose(value, back), shape) for value in (re, im)), axis=rank - 1))


def _real_inverse(b: Builder, axis: int, length: int | None) -> None:
    """x[n] = (1/N) sum_k w_k (Re X_k cos - Im X_k sin)(2 pi k n / N): the bins left out are conjugates of those given.

    w_k is 1 for the bins without a partner (0, and N/2 of an even N), 2 for the others.
    """
    rank, bins = len(b.x.shape), b.x.shape[axis]
    length = 2 * (bins - 1) if length is None else length
    used = min(bins, length // 2 + 1)
    numbers = np.arange(used)
    phase = 2 * np.pi * np.outer(numbers, np.arange(length)) / length
    weights = np.where((numbers == 0) | (2 * numbers == length), 1.0, 2.0)[:, None] / length
    order = [i for i in range(rank - 1) if i != axis] + [axis]
    parts = []
    for index, matrix in enumerate((np.cos(phase) * weights, -np.sin(phase) * weights)):
        taken = b.take(b.take(b.x.name, rank - 1, index, index + 1), axis, 0, used)
        shape = [used if i == axis else s for i, s in enumerate(b.x.shape[:-1])]
        parts.append(b.op("MatMul", b.transpose(b.reshape(taken, shape), order), matrix.astype(np.float32)))
    back = [order.index(i) for i in range(rank - 1)]
    b.output(b.reshape(b.transpose(b.op("Add", *parts), back), b.y.shape))


@decomposes("STFT")
def stft(b: Builder) -> None:
    """Frames by gather, the window, then the transform of each frame."""
    step, window, length = b.operand(1), b.operand(2), b.operand(3)
    if step is None or step.constant is None or (length is not None and length.constant is None):
        raise Undecomposable("its frame step or length is computed at run time")
    size = int(np.asarray(length.constant).ravel()[0]) if length is not None else (window.shape[0] if window else 0)
    hop = int(step.constant.ravel()[0])
    if not 0 < size <= MAX_LENGTH or (len(b.x.shape) == 3 and b.x.shape[2] != 1) or b.x.dtype != np.float32:
        raise Undecomposable("its frame is empty or too long, or the signal is complex or not float32")
    frames = (b.x.shape[1] - size) // hop + 1
    places = (np.arange(frames)[:, None] * hop + np.arange(size)[None, :]).astype(np.int64)
    cut = b.op("Gather", b.reshape(b.x.name, b.x.shape[:2]), places, axis=1)
    if window is not None:
        cut = b.op("Mul", cut, window.name)
    bins = size // 2 + 1 if b.attribute("onesided", 1) else size
    phase = 2 * np.pi * np.outer(np.arange(size), np.arange(bins)) / size
    shape = [b.x.shape[0], frames, bins, 1]
    parts = [b.reshape(b.op("MatMul", cut, m.astype(np.float32)), shape) for m in (np.cos(phase), -np.sin(phase))]
    b.output(b.op("Concat", *parts, axis=3))
