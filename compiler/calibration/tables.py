"""Tables as samples, read in batches of rows.

A table (.csv, .parquet) has a column per feature and, if it has labels, one called ``label``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from compiler.calibration.dataset import LABELS, Chunk
from compiler.calibration.files import Source, csv_rows
from compiler.errors import DataError, ExtraMissing
from runtimes.session import Array, TensorSpec

TABLES: Final = (".csv", ".parquet")
ROWS: Final = 1024  # at a time
_LABEL_COLUMNS: Final = ("label", LABELS)

Batch = dict[str, list[Any]]  # values by column


def read_table(path: Path, inputs: tuple[TensorSpec, ...]) -> Source:
    """A table's rows as samples.

    A model with one input takes all columns but the label's, in their order, reshaped to the input's shape; with several inputs
    each takes the columns named after it, ``name`` or ``name[0]``, ``name[1]``, ...

    Raises:
        DataError: the table cannot be read, is not numeric, or has not the columns that the model needs.
        ExtraMissing: .parquet without pyarrow.
    """
    batches = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    first = next(batches, None)
    if first is None:
        raise DataError(f"{path} holds no samples.", remedy="Give a header and at least one row.")
    label = next((name for name in _LABEL_COLUMNS if name in first), None)
    features = [name for name in first if name != label]
    columns = {spec.name: _columns_of(spec, features, inputs, path) for spec in inputs}
    rest = chain([first], batches)
    if label is None:
        return Source(tuple(columns), _feature_chunks(rest, columns, inputs, path))
    # Labels are needed whole to know whether they are numbers; the features pass on the way.
    return _labelled(rest, columns, inputs, path, label)


def _labelled(
    batches: Iterator[Batch], columns: dict[str, list[str]], inputs: tuple[TensorSpec, ...], path: Path, label: str
) -> Source:
    labels, classes = _as_labels([value for batch in _again(path) for value in batch[label]])
    chunks = chain(_feature_chunks(batches, columns, inputs, path), [(LABELS, labels)])
    return Source((*columns, LABELS), chunks, classes)


def _again(path: Path) -> Iterator[Batch]:
    return _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)


def _feature_chunks(
    batches: Iterator[Batch], columns: dict[str, list[str]], inputs: tuple[TensorSpec, ...], path: Path
) -> Iterator[Chunk]:
    for batch in batches:
        for spec in inputs:
            yield spec.name, _stack(spec, [batch[name] for name in columns[spec.name]], path)


def _columns_of(spec: TensorSpec, features: list[str], inputs: tuple[TensorSpec, ...], path: Path) -> list[str]:
    own = [name for name in features if name == spec.name or name.startswith(f"{spec.name}[")]
    names = own or (features if len(inputs) == 1 else [])
    wanted = int(np.prod([size or 1 for size in spec.shape[1:]]))
    if len(names) != wanted:
        raise DataError(
            f"{path}: input {spec.name!r} takes {wanted} values per sample, the table has {len(names)} columns for it.",
            remedy="Give one column per value; a label goes into a column called label.",
        )
    return names


def _stack(spec: TensorSpec, columns: list[list[Any]], path: Path) -> Array:
    try:
        table = np.array(columns, np.float64).T
    except ValueError as error:
        raise DataError(f"{path} is not numeric: {error}.", remedy="Encode words as numbers first.") from error
    return table.reshape(len(table), *(size or 1 for size in spec.shape[1:])).astype(spec.dtype)


def _as_labels(values: list[Any]) -> tuple[Array, tuple[str, ...] | None]:
    try:
        numbers = np.array(values, np.float64)
        if (numbers == np.rint(numbers)).all():
            return numbers.astype(np.int64), None
    except ValueError:
        pass
    texts = [str(value) for value in values]
    classes = tuple(sorted(set(texts)))
    return np.array([classes.index(text) for text in texts], np.int64), classes


def _csv(path: Path) -> Iterator[Batch]:
    rows = csv_rows(path)
    while batch := list(islice(rows, ROWS)):
        yield {name: [row[name] for row in batch] for name in batch[0]}


def _parquet(path: Path) -> Iterator[Batch]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ExtraMissing("Parquet needs pyarrow.", remedy="Run pip install pyarrow, or give a .csv.") from error
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=ROWS):
                yield dict(batch.to_pydict())
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy="Write it again.") from error
