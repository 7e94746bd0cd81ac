"""Pictures, recordings and tables as samples.

A folder of files with one sub-folder per class gives labels, in the order of the sub-folders' names; so does ``labels.csv`` in it
with the columns file and label. A table (.csv, .parquet) has a column per feature and, if it has labels, one called ``label``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from compiler.errors import DataError, ExtraMissing
from runtimes.errors import InputMismatch
from runtimes.preprocess import AudioInput, ImageInput, prepare
from runtimes.session import Array, TensorSpec

Declarations = Mapping[str, ImageInput | AudioInput]
IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
RECORDINGS: Final = (".wav",)
TABLES: Final = (".csv", ".parquet")
_LABELS_FILE: Final = "labels.csv"
_LABEL_COLUMNS: Final = ("label", "labels")


@dataclass(frozen=True, slots=True)
class Read:
    """``arrays`` named as inputs, with ``labels`` where known; ``classes`` are the labels' names in order."""

    arrays: dict[str, Array]
    classes: tuple[str, ...] | None = None


def media_in(folder: Path) -> list[Path]:
    """Pictures and recordings in a folder and its sub-folders, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in (*IMAGES, *RECORDINGS) and p.is_file())


def read_media(folder: Path, files: list[Path], inputs: tuple[TensorSpec, ...], declared: Declarations | None) -> Read:
    """Every file as one sample of the model's one input.

    Raises:
        DataError: no preprocessing is declared, the model has several inputs, or a file cannot be read or has no label.
        RuntimeMissing: Pillow is not installed.
    """
    if len(inputs) != 1:
        raise DataError(
            f"{folder} holds one file per sample, and the model has {len(inputs)} inputs.", remedy="Give an .npz."
        )
    declaration = (declared or {}).get(inputs[0].name)
    if declaration is None:
        raise DataError(
            f"{folder} holds pictures or recordings, and nothing says how they become input {inputs[0].name!r}.",
            remedy="Declare it with --preprocess FILE, see docs/data.md.",
        )
    samples = [_prepared(file, declaration) for file in files]
    arrays = {inputs[0].name: np.concatenate(samples)}
    labels, classes = _labels(folder, files)
    return Read(arrays if labels is None else arrays | {"labels": labels}, classes)


def _prepared(file: Path, declaration: ImageInput | AudioInput) -> Array:
    try:
        return prepare(declaration, file.read_bytes())
    except InputMismatch as error:
        raise DataError(f"{file}: {error.message}", remedy=f"{error.remedy} Or take the file out.") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.", remedy="Check its rights.") from error


def _labels(folder: Path, files: list[Path]) -> tuple[Array | None, tuple[str, ...] | None]:
    if (folder / _LABELS_FILE).is_file():
        return _listed(folder, files)
    parents = [file.relative_to(folder).parts for file in files]
    if any(len(parts) < 2 for parts in parents):
        return None, None
    classes = tuple(sorted({parts[0] for parts in parents}))
    return np.array([classes.index(parts[0]) for parts in parents], np.int64), classes


def _listed(folder: Path, files: list[Path]) -> tuple[Array, tuple[str, ...] | None]:
    rows = _rows(folder / _LABELS_FILE)
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise DataError(f"{folder / _LABELS_FILE} has no columns file and label.", remedy="Name its columns so.")
    by_name = {row["file"]: row["label"] for row in rows}
    names = [file.relative_to(folder).as_posix() for file in files]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DataError(
            f"{folder / _LABELS_FILE} has no label for {len(missing)} files, first {missing[0]}.",
            remedy="Add them, or take the files out.",
        )
    texts = [by_name[name] for name in names]
    if all(text.lstrip("-").isdecimal() for text in texts):
        return np.array([int(text) for text in texts], np.int64), None
    classes = tuple(sorted(set(texts)))
    return np.array([classes.index(text) for text in texts], np.int64), classes


def read_table(path: Path, inputs: tuple[TensorSpec, ...]) -> Read:
    """A table's rows as samples.

    A model with one input takes all columns but the label's, in their order, reshaped to the input's shape; with several inputs
    each takes the columns named after it, ``name`` or ``name[0]``, ``name[1]``, ...

    Raises:
        DataError: the table cannot be read, is not numeric, or has not the columns that the model needs.
        ExtraMissing: .parquet without pyarrow.
    """
    columns = _parquet(path) if path.suffix.lower() == ".parquet" else _csv_columns(path)
    label = next((name for name in _LABEL_COLUMNS if name in columns), None)
    values = columns.pop(label) if label else None
    arrays = {spec.name: _stack(spec, _columns_of(spec, columns, inputs, path), path) for spec in inputs}
    if values is None:
        return Read(arrays)
    labels, classes = _as_labels(values)
    return Read(arrays | {"labels": labels}, classes)


def _columns_of(
    spec: TensorSpec, columns: dict[str, list[Any]], inputs: tuple[TensorSpec, ...], path: Path
) -> list[list[Any]]:
    own = [name for name in columns if name == spec.name or name.startswith(f"{spec.name}[")]
    names = own or (list(columns) if len(inputs) == 1 else [])
    wanted = int(np.prod([size or 1 for size in spec.shape[1:]]))
    if len(names) != wanted:
        raise DataError(
            f"{path}: input {spec.name!r} takes {wanted} values per sample, the table has {len(names)} columns for it.",
            remedy="Give one column per value; a label goes into a column called label.",
        )
    return [columns[name] for name in names]


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


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy="Save it as UTF-8 CSV with a header.") from error
    if any(None in row or None in row.values() for row in rows):
        raise DataError(f"{path} has rows of different length.", remedy="Give every row as many values as the header.")
    return rows


def _csv_columns(path: Path) -> dict[str, list[Any]]:
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path} holds no samples.", remedy="Give a header and at least one row.")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _parquet(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ExtraMissing("Parquet needs pyarrow.", remedy="Run pip install pyarrow, or give a .csv.") from error
    try:
        return dict(parquet.read_table(path).to_pydict())
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy="Write it again.") from error
