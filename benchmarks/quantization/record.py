"""Results of one model, kept as JSON so that the page can be written after any number of runs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quantization.scoring import Row
from compiler.verification.metrics import Accuracy, Flips


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


def save(record: Record, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.order:02d}.json"
    path.write_text(json.dumps(dataclasses.asdict(record), indent=1), "utf-8")


def load(folder: Path) -> list[Record]:
    """All records, in the table's order."""
    return [_record(json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json"))]


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
