"""Data: scikit-learn's digits, the MNIST half, keyword samples, and smooth noise where a model has no samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtimes.session import Array

CALIBRATED = 256


@dataclass(frozen=True, slots=True)
class Labelled:
    """``images`` [N, 1, H, W] float32 between 0 and 1, ``labels`` [N] int64; the first ``trained`` are for training."""

    images: Array
    labels: Array
    trained: int


def digits() -> Labelled:
    """scikit-learn's 1797 digits, each of the 8 x 8 pixels four times, shuffled once."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = np.kron(bunch.images[order] / 16.0, np.ones((2, 2)))[:, np.newaxis].astype(np.float32)
    return Labelled(images, bunch.target[order].astype(np.int64), 1000)


def mnist(realdata: Path) -> Labelled:
    """5000 images of the MNIST test set, pixels / 255."""
    data = np.load(realdata / "mnist" / "t10k_first_half.npz")
    images, labels = data["images"], data["labels"]
    pixels = images.reshape(-1, 1, 28, 28).astype(np.float32) / 255.0
    order = np.random.default_rng(0).permutation(len(labels))
    return Labelled(pixels[order], labels[order].astype(np.int64), 3000)


def boxes(images: Array) -> Array:
    """First and last inked row and column, [count, 4], as shares of the side."""
    side, ink = images.shape[-1], images[:, 0] > 0.3
    rows, columns = ink.any(2), ink.any(1)
    found = [rows.argmax(1), side - rows[:, ::-1].argmax(1), columns.argmax(1), side - columns[:, ::-1].argmax(1)]
    return (np.stack(found, 1) / side).astype(np.float32)


def smooth(count: int, shape: tuple[int, ...], low: float, high: float, seed: int) -> Array:
    """Noise without high frequencies, [count, *shape], spread over [low, high] sample by sample.

    Made where a model comes without samples: white noise would be averaged away by the first layers, and tell nothing.
    """
    spectrum = np.random.default_rng(seed).standard_normal((count, *shape))
    axes = tuple(range(1, 1 + max(1, len(shape) - 1)))
    for axis in axes:
        size = spectrum.shape[axis]
        window = np.exp(-0.5 * (np.fft.fftfreq(size) * 12) ** 2)
        spread = window.reshape([-1 if a == axis else 1 for a in range(spectrum.ndim)])
        spectrum = np.fft.ifft(np.fft.fft(spectrum, axis=axis) * spread, axis=axis).real
    flat = tuple(range(1, spectrum.ndim))
    least, most = spectrum.min(flat, keepdims=True), spectrum.max(flat, keepdims=True)
    return (low + (high - low) * (spectrum - least) / (most - least)).astype(np.float32)
