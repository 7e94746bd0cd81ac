"""A Dataset: samples that were checked against a model's inputs, with a digest of their content."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.errors import DataError
from runtimes.session import Array, TensorSpec

LOGGER = logging.getLogger(__name__)

# Fewer samples than this leave the ranges of a net's activations to chance (post-training papers use 100 to 1000).
FEW_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples for a model.

    ``feeds``: per input [count, ...], sample axis 0, in the model's dtype. ``labels``: [count, ...] or None.
    ``digest``: hex SHA-256 of names, dtypes, shapes and content. ``batch``: the model's own batch size per run.
    ``classes``: names of the labels 0, 1, ..., where the data told them.
    ``warnings``: facts, with their evidence, that make the data doubtful for calibration.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    digest: str
    batch: int = 1
    warnings: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None

    @property
    def count(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self) -> Iterator[dict[str, Array]]:
        """Feeds of one run each; the last is filled up with copies of its last sample if it is short."""
        for start in range(0, self.count, self.batch):
            chunk = {name: array[start : start + self.batch] for name, array in self.feeds.items()}
            short = self.batch - len(next(iter(chunk.values())))
            if short:
                chunk = {n: np.concatenate([a, np.repeat(a[-1:], short, axis=0)]) for n, a in chunk.items()}
            yield chunk

    def take(self, count: int) -> Dataset:
        """The first ``count`` samples (all, if there are fewer)."""
        feeds = {name: array[:count] for name, array in self.feeds.items()}
        labels = None if self.labels is None else self.labels[:count]
        return Dataset(feeds, labels, content_digest(feeds, labels), self.batch)


def make_dataset(arrays: Mapping[str, Array], inputs: tuple[TensorSpec, ...], *, where: str) -> Dataset:
    """Check ``arrays`` against ``inputs``.

    Args:
        arrays: arrays named as the inputs, optionally ``labels``; with a single input any single other array is it.
        inputs: the model's inputs; axis 0 is the batch.
        where: what to call the data in messages.

    Raises:
        DataError: an input is missing, has another shape or dtype, holds NaN or infinities, or is empty; the inputs
            or labels disagree in their sample counts.
    """
    labels, samples = _split(arrays, inputs, where)
    feeds = {spec.name: _fit(samples[spec.name], spec, where) for spec in inputs}
    _check_counts(feeds, labels, where)
    batch = next((spec.shape[0] for spec in inputs if spec.shape), None) or 1
    warnings = (*_doubts(feeds), *_doubtful_scale(feeds), *_missing_classes(labels))
    for warning in warnings:
        LOGGER.warning("%s: %s", where, warning)
    return Dataset(feeds, labels, content_digest(feeds, labels), batch, warnings)


def content_digest(feeds: Mapping[str, Array], labels: Array | None) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        _digest_into(digest, name, feeds[name])
    if labels is not None:
        _digest_into(digest, "labels", labels)
    return digest.hexdigest()


def _digest_into(digest: hashlib._Hash, name: str, array: Array) -> None:
    digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).data)


def _split(
    arrays: Mapping[str, Array], inputs: tuple[TensorSpec, ...], where: str
) -> tuple[Array | None, dict[str, Array]]:
    names = [spec.name for spec in inputs]
    others = {name: array for name, array in arrays.items() if name != "labels" or "labels" in names}
    labels = arrays.get("labels") if "labels" not in names else None
    if len(names) == 1 and names[0] not in others and len(others) == 1:
        return labels, {names[0]: next(iter(others.values()))}
    missing = [name for name in names if name not in others]
    if missing:
        raise DataError(
            f"{where}: no array for input(s) {missing}; found {sorted(arrays)}.",
            remedy=f"Name the arrays as the model's inputs: {names}.",
        )
    unknown = sorted(set(others) - set(names))
    if unknown:
        LOGGER.info("%s: arrays %s are no inputs of the model and are ignored", where, unknown)
    return labels, {name: others[name] for name in names}


def _fit(array: Array, spec: TensorSpec, where: str) -> Array:
    """``array`` as [count, ...] in the dtype of ``spec``."""
    wanted = (None, *spec.shape[1:])
    if array.ndim != len(wanted) or any(w not in (None, h) for w, h in zip(wanted, array.shape, strict=True)):
        raise DataError(
            f"{where}: input {spec.name!r} needs samples of shape {_words(wanted)} (sample axis first), "
            f"found {_words(array.shape)}.",
            remedy="Stack the samples on axis 0 and keep the model's own layout behind it.",
        )
    if not len(array):
        raise DataError(f"{where}: input {spec.name!r} holds no samples.", remedy="Give at least one sample.")
    fitted = _cast(array, spec, where)
    if fitted.dtype.kind == "f" and not np.isfinite(fitted).all():
        sample = int(np.argwhere(~np.isfinite(fitted))[0][0])
        raise DataError(
            f"{where}: input {spec.name!r} holds NaN or infinity, first in sample {sample}.",
            remedy="Remove or repair the sample.",
        )
    return fitted


def _cast(array: Array, spec: TensorSpec, where: str) -> Array:
    """Only casts that lose nothing a model could use: float64 to float32, and integers that float32 holds exactly."""
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    if wanted == np.float32 and array.dtype.kind in "fiu":
        with np.errstate(over="ignore"):  # an overflow becomes infinity, which the caller refuses
            cast = array.astype(np.float32)
        if array.dtype == np.float64 or (array.dtype.kind in "iu" and np.array_equal(cast.astype(array.dtype), array)):
            LOGGER.info("%s: input %r was cast from %s to float32", where, spec.name, array.dtype)
            return cast
    raise DataError(
        f"{where}: input {spec.name!r} needs {spec.dtype}, found {array.dtype}.",
        remedy=f"Save the array as {spec.dtype}; only float64 and exactly representable integers are cast to float32.",
    )


def _check_counts(feeds: Mapping[str, Array], labels: Array | None, where: str) -> None:
    counts = {name: len(array) for name, array in feeds.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{where}: the inputs have different sample counts: {counts}.", remedy="Give every input as many samples."
        )
    count = next(iter(counts.values()))
    if labels is not None and (labels.ndim == 0 or len(labels) != count):
        found = "a scalar" if labels.ndim == 0 else str(len(labels))
        raise DataError(f"{where}: {count} samples, but {found} labels.", remedy="Give one label per sample.")


def _doubts(feeds: Mapping[str, Array]) -> Iterator[str]:
    count = len(next(iter(feeds.values())))
    if count < FEW_SAMPLES:
        yield f"only {count} samples; ranges from fewer than {FEW_SAMPLES} are left to chance"
    for name, array in feeds.items():
        if array.size > 1 and (array == array.flat[0]).all():
            yield f"input {name!r} has the same value {array.flat[0]} everywhere"
    seen = {
        b"".join(hashlib.sha256(np.ascontiguousarray(a[i]).data).digest() for a in feeds.values()) for i in range(count)
    }
    if len(seen) < count:
        yield f"{count - len(seen)} of {count} samples are exact duplicates of others"


def _doubtful_scale(feeds: Mapping[str, Array]) -> Iterator[str]:
    """Pixels divided by 255 twice end below 1/255; no usual preprocessing gets there."""
    for name, array in feeds.items():
        if (
            array.dtype.kind == "f"
            and array.ndim >= 3
            and array.size
            and 0 < float(np.abs(array).max()) <= 1 / 255 + 1e-6
        ):
            peak = float(np.abs(array).max())
            yield f"input {name!r} never exceeds {peak:.3g}, which is what normalising twice leaves"


def _missing_classes(labels: Array | None) -> Iterator[str]:
    """Labels count from 0: a class between that no sample has was left out, not unknown."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size or labels.min() < 0:
        return
    total = int(labels.max()) + 1
    present = np.unique(labels)
    if total <= 2 * labels.size and len(present) < total:
        missing = np.setdiff1d(np.arange(total), present)
        yield f"{len(missing)} of the classes 0 to {total - 1} have no sample, first class {missing[0]}"


def _words(shape: tuple[int | None, ...]) -> str:
    return "x".join("N" if size is None else str(size) for size in shape) or "scalar"
