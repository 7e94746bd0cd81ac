"""A Dataset: samples that were checked against a model's inputs, with a digest of their content.

Samples come in chunks and are checked, counted and digested as they pass; what is kept is what samples.py keeps.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from compiler.calibration.doubts import Scan, doubts
from compiler.calibration.samples import Spool, chosen_samples
from compiler.errors import DataError
from runtimes.session import Array, SampleFeeds, Samples, TensorSpec

LOGGER = logging.getLogger(__name__)

LABELS = "labels"
Chunk = tuple[str, Array]  # an array's name, and samples of it


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples for a model.

    ``feeds``: per input [count, ...], sample axis 0, in the model's dtype; on disk if there are many, see samples.py.
    ``labels``: [count, ...] or None. ``digest``: hex SHA-256 of names, dtypes, shapes and content. ``batch``: the model's own
    batch size per run. ``classes``: names of the labels 0, 1, ..., where the data told them.
    ``warnings``: facts, with their evidence, that make the data doubtful for calibration.
    """

    feeds: SampleFeeds
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
        return self.select(range(min(count, self.count)))

    def select(self, chosen: Sequence[int]) -> Dataset:
        """The samples at these positions; what lies on disk stays there. The digest is of this one's and the positions."""
        feeds = {name: chosen_samples(array, chosen) for name, array in self.feeds.items()}
        labels = None if self.labels is None else self.labels[list(chosen)]
        picked = hashlib.sha256(f"{self.digest}\0".encode() + np.asarray(chosen, "<i8").tobytes()).hexdigest()
        return Dataset(feeds, labels, picked, self.batch, classes=self.classes)


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
    return stream_dataset(tuple(arrays), arrays.items(), inputs, where=where)


def stream_dataset(
    names: Sequence[str], chunks: Iterable[Chunk], inputs: tuple[TensorSpec, ...], *, where: str
) -> Dataset:
    """As make_dataset, of arrays that come in pieces.

    Args:
        names: the arrays that there are.
        chunks: pieces along axis 0, each array's in order; arrays may take turns or come one after another.
    """
    chosen = _choose(names, inputs, where)
    intakes = {spec.name: _Intake(spec, where) for spec in inputs}
    labels: list[Array] = []
    for name, rows in chunks:
        if name in chosen:
            intakes[chosen[name]].take(rows)
        elif name == LABELS:
            labels.append(np.atleast_1d(rows) if rows.ndim else _scalar_labels(where))
    for intake in intakes.values():
        intake.check_not_empty()
    feeds = {name: intake.spool.samples() for name, intake in intakes.items()}
    joined = np.concatenate(labels) if labels else None
    _check_counts(feeds, joined, where)
    batch = next((spec.shape[0] for spec in inputs if spec.shape), None) or 1
    digest = _digest(feeds, {n: intake.content.digest() for n, intake in intakes.items()}, joined)
    warnings = tuple(doubts({name: intake.scan for name, intake in intakes.items()}, joined))
    for warning in warnings:
        LOGGER.warning("%s: %s", where, warning)
    return Dataset(feeds, joined, digest, batch, warnings)


def turned(data: Dataset, feeds: SampleFeeds) -> Dataset:
    """``data`` with other ``feeds`` that were made from its own; the digest tells the two apart."""
    shapes = sorted((name, array.shape) for name, array in feeds.items())
    return replace(data, feeds=feeds, digest=hashlib.sha256(f"{data.digest}\0{shapes}".encode()).hexdigest())


@dataclass(slots=True)
class _Intake:
    """Takes one input's samples: checks, casts, looks at, digests and keeps them."""

    spec: TensorSpec
    where: str
    spool: Spool = field(default_factory=Spool)
    scan: Scan = field(default_factory=Scan)
    content: hashlib._Hash = field(default_factory=hashlib.sha256)

    def take(self, rows: Array) -> None:
        fitted = _fit(rows, self.spec, self.where, len(self.spool), quiet=len(self.spool) > 0)
        self.scan.update(fitted)
        self.content.update(np.ascontiguousarray(fitted).data)
        self.spool.append(fitted)

    def check_not_empty(self) -> None:
        if not len(self.spool):
            raise DataError(
                f"{self.where}: input {self.spec.name!r} holds no samples.", remedy="Give at least one sample."
            )


def _digest(feeds: SampleFeeds, contents: Mapping[str, bytes], labels: Array | None) -> str:
    """Hex SHA-256 over names, dtypes, shapes and the digests of the bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        digest.update(f"{name}\0{feeds[name].dtype.str}\0{feeds[name].shape}\n".encode() + contents[name])
    if labels is not None:
        digest.update(f"{LABELS}\0{labels.dtype.str}\0{labels.shape}\n".encode())
        digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def _choose(names: Sequence[str], inputs: tuple[TensorSpec, ...], where: str) -> dict[str, str]:
    """From arrays' names to inputs' names."""
    wanted = [spec.name for spec in inputs]
    others = [name for name in names if name != LABELS or LABELS in wanted]
    if len(wanted) == 1 and wanted[0] not in others and len(others) == 1:
        return {others[0]: wanted[0]}
    missing = [name for name in wanted if name not in others]
    if missing:
        raise DataError(
            f"{where}: no array for input(s) {missing}; found {sorted(names)}.",
            remedy=f"Name the arrays as the model's inputs: {wanted}.",
        )
    unknown = sorted(set(others) - set(wanted))
    if unknown:
        LOGGER.info("%s: arrays %s are no inputs of the model and are ignored", where, unknown)
    return {name: name for name in wanted}


def _fit(array: Array, spec: TensorSpec, where: str, before: int, *, quiet: bool) -> Array:
    """``array`` as [count, ...] in the dtype of ``spec``; ``before`` samples came earlier."""
    wanted = (None, *spec.shape[1:])
    if not _matches(array.shape, wanted):
        raise DataError(
            f"{where}: input {spec.name!r} needs samples of shape {_words(wanted)} (sample axis first), "
            f"found {_words(array.shape)}.",
            remedy=_layout_remedy(array.shape, wanted),
        )
    fitted = _cast(array, spec, where, quiet=quiet)
    if fitted.dtype.kind == "f" and not np.isfinite(fitted).all():
        sample = before + int(np.argwhere(~np.isfinite(fitted))[0][0])
        raise DataError(
            f"{where}: input {spec.name!r} holds NaN or infinity, first in sample {sample}.",
            remedy="Remove or repair the sample.",
        )
    return fitted


def _matches(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, h) for w, h in zip(wanted, shape, strict=True))


def _layout_remedy(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    for layout, order in (("channels last", (0, 3, 1, 2)), ("channels first", (0, 2, 3, 1))):
        if len(shape) == 4 and _matches(tuple(shape[a] for a in order), wanted):
            return f"The samples have {layout}: transpose them by {order} (a reshape would mix them up)."
    return "Stack the samples on axis 0 and keep the model's own layout behind it."


def _cast(array: Array, spec: TensorSpec, where: str, *, quiet: bool) -> Array:
    """Only casts that lose nothing a model could use: float64 to float32, and integers that float32 holds exactly."""
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    if wanted == np.float32 and array.dtype.kind in "fiu":
        with np.errstate(over="ignore"):  # an overflow becomes infinity, which the caller refuses
            cast = array.astype(np.float32)
        if array.dtype == np.float64 or (array.dtype.kind in "iu" and np.array_equal(cast.astype(array.dtype), array)):
            if not quiet:
                LOGGER.info("%s: input %r was cast from %s to float32", where, spec.name, array.dtype)
            return cast
    raise DataError(
        f"{where}: input {spec.name!r} needs {spec.dtype}, found {array.dtype}.",
        remedy=f"Save the array as {spec.dtype}; only float64 and exactly representable integers are cast to float32.",
    )


def _scalar_labels(where: str) -> Array:
    raise DataError(f"{where}: the labels are a scalar.", remedy="Give one label per sample.")


def _check_counts(feeds: Mapping[str, Samples], labels: Array | None, where: str) -> None:
    counts = {name: len(array) for name, array in feeds.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{where}: the inputs have different sample counts: {counts}.", remedy="Give every input as many samples."
        )
    count = next(iter(counts.values()))
    if labels is not None and len(labels) != count:
        raise DataError(f"{where}: {count} samples, but {len(labels)} labels.", remedy="Give one label per sample.")


def _words(shape: tuple[int | None, ...]) -> str:
    return "x".join("N" if size is None else str(size) for size in shape) or "scalar"
