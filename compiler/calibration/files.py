"""Pictures and recordings as samples, prepared one file at a time.

A folder of files with one sub-folder per class gives labels, in the order of the sub-folders' names; so does ``labels.csv`` in it
with the columns file and label.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from compiler.calibration.dataset import LABELS, Chunk
from compiler.errors import DataError
from runtimes.errors import InputMismatch
from runtimes.preprocess import AudioInput, ImageInput, prepare
from runtimes.session import Array, TensorSpec

Declarations = Mapping[str, ImageInput | AudioInput]
IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
RECORDINGS: Final = (".wav",)
_LABELS_FILE: Final = "labels.csv"


@dataclass(frozen=True, slots=True)
class Source:
    """``names`` of the arrays that ``chunks`` will bring, ``labels`` among them where known; ``classes``: the labels' names."""

    names: tuple[str, ...]
    chunks: Iterable[Chunk]
    classes: tuple[str, ...] | None = None


def media_in(folder: Path) -> list[Path]:
    """Pictures and recordings in a folder and its sub-folders, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in (*IMAGES, *RECORDINGS) and p.is_file())


def read_media(
    folder: Path, files: list[Path], inputs: tuple[TensorSpec, ...], declared: Declarations | None
) -> Source:
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
    labels, classes = _labels(folder, files)
    name = inputs[0].name
    samples: Iterator[Chunk] = ((name, _prepared(file, declaration)) for file in files)
    if labels is None:
        return Source((name,), samples)
    return Source((name, LABELS), chain(samples, [(LABELS, labels)]), classes)


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
    rows = list(csv_rows(folder / _LABELS_FILE))
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


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header, one at a time. Raises DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                if None in row or None in row.values():
                    raise DataError(
                        f"{path} has rows of different length.", remedy="Give every row as many values as the header."
                    )
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.", remedy="Save it as UTF-8 CSV with a header.") from error
