"""What a quantized model is worth: figures, and who is better than whom beyond chance."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from compiler.verification.metrics import Accuracy, Flips, accuracy, flips, snr_db
from runtimes.session import Array

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Judge:
    """The float model's ``answers`` [samples, columns] and the samples' labels; without any, its own argmax stands for them.

    ``classes``: the leading columns that are class scores; 0 where nothing is classified.
    """

    answers: Array
    labels: Array | None
    classes: int

    @property
    def truth(self) -> Array:
        return self.scores(self.answers).argmax(1) if self.labels is None else self.labels

    def scores(self, answers: Array) -> Array:
        return answers[:, : self.classes] if self.classes else answers


@dataclass(frozen=True, slots=True)
class Row:
    """One quantizer on one model. ``against``: McNemar's test of ours (the row of a plain build) against this one."""

    quantizer: str
    failed: str | None = None
    accuracy: Accuracy | None = None
    flips: Flips | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    size_bytes: int | None = None
    seconds: float | None = None
    against: Flips | None = None


def score(name: str, answers: Array, size_bytes: int, seconds: float, judge: Judge) -> Row:
    """Figures of ``answers`` [samples, columns]."""
    plain, found = judge.scores(judge.answers), judge.scores(answers)
    noise = snr_db(plain.astype(np.float64), found.astype(np.float64) - plain)
    common = {"sqnr_db": noise, "size_bytes": size_bytes, "seconds": seconds}
    if not judge.classes:
        return Row(name, **common)  # type: ignore[arg-type]
    same = float((found.argmax(1) == plain.argmax(1)).mean())
    right = accuracy(found, judge.truth) if judge.labels is not None else None
    return Row(name, None, right, flips(found, plain, judge.truth), same, **common)  # type: ignore[arg-type]


def versus(ours: Array, theirs: Array, judge: Judge) -> Flips | None:
    """Ours against theirs on the same samples: ``lost`` are answers that only they have right."""
    return flips(judge.scores(ours), judge.scores(theirs), judge.truth) if judge.classes else None


def worse(one: Flips | None) -> bool:
    """Whether ours is worse than chance explains."""
    return one is not None and one.drop_points > 0 and one.p_value < SIGNIFICANT


def median_sqnr(rows: Iterable[Row]) -> float | None:
    found = [row.sqnr_db for row in rows if row.sqnr_db is not None and np.isfinite(row.sqnr_db)]
    return statistics.median(found) if found else None
