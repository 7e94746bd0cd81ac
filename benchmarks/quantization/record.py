"""Results of one model, kept so that the page can be written after any number of runs, and quantizers measured one by one.

What was measured on another model or other samples under the same name is forgotten.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quantization.scoring import Row
from compiler.verification.metrics import Accuracy, Flips
from runtimes.session import Array


@dataclass(frozen=True, slots=True)
class Record:
    """One model: ``rows`` of all quantizers in one run. ``order``: its place in the table."""

    model: str
    order: int
    hard: bool
    samples: int
    float_bytes: int
    float_accuracy: Accuracy | None
    rows: tuple[Row, ...]
    environment: dict[str, str]
    digest: str = ""


def save(record: Record, answers: Mapping[str, Array], folder: Path) -> None:
    """``answers``: by quantizer, [samples, columns]."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, record.order)
    path.write_text(json.dumps(dataclasses.asdict(record), indent=1), "utf-8")
    np.savez_compressed(path.with_suffix(".npz"), **{name.encode().hex(): array for name, array in answers.items()})


def kept(folder: Path, order: int, digest: str) -> tuple[tuple[Row, ...], dict[str, Array]]:
    """Rows and answers of earlier runs on the same model and samples."""
    path = _path(folder, order)
    if not path.is_file() or (record := _record(json.loads(path.read_text("utf-8")))).digest != digest:
        return (), {}
    with np.load(path.with_suffix(".npz")) as arrays:
        return record.rows, {bytes.fromhex(name).decode(): arrays[name] for name in arrays.files}


def load(folder: Path) -> list[Record]:
    """All records, in the table's order."""
    return [_record(json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json"))]


def _path(folder: Path, order: int) -> Path:
    return folder / f"{order:02d}.json"


def _record(plain: dict[str, Any]) -> Record:
    rows = tuple(
        Row(
            **{
                **row,
                "accuracy": _maybe(Accuracy, row["accuracy"]),
                "flips": _maybe(Flips, row["flips"]),
                "against": _maybe(Flips, row["against"]),
            }
        )
        for row in plain["rows"]
    )
    return Record(**{**plain, "rows": rows, "float_accuracy": _maybe(Accuracy, plain["float_accuracy"])})


def _maybe(kind: type[Any], fields: dict[str, Any] | None) -> Any:
    return None if fields is None else kind(**fields)
