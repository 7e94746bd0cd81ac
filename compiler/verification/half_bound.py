"""How far float16's roundings may take a Core ML package from its hub, from the program that was written.

With independent roundings of mean zero (Higham and Mary 2019, A new approach to probabilistic rounding error analysis, SIAM J.
Sci. Comput. 41, A2815) Hoeffding's inequality says that an output's error exceeds t s with a chance of at most 2 exp(-t**2 / 2),
where s is what the error has as its standard deviation when every rounding is its largest with a random sign. So the program runs
a few times that way (runtimes/coreml_reference/shaking.py): decompositions, casts and float32 exceptions count as they stand in
the file.
docs/adr/0027-half-rounding.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtimes.coreml_reference.session import open_package
from runtimes.coreml_reference.shaking import Shake
from runtimes.session import Array, Samples, run_dataset

DRAWS = 8
SAMPLES = 2  # the first, and the one that is furthest off
CHANCE = 1e-3  # that any output of a correct package exceeds the bound


@dataclass(frozen=True, slots=True)
class HalfBound:
    """The output with the largest share of its bound. ``error`` and ``bound`` are relative to the range of its true values."""

    tensor: str
    error: float
    bound: float


def half_bound(
    path: Path, feeds: Mapping[str, Samples], got: Mapping[str, Array], want: Mapping[str, Array], batch: int = 1
) -> HalfBound:
    """Measure the bound of the float16 package at ``path``.

    Args:
        feeds: what it was run on, samples on axis 0 (``batch`` of them at a time).
        got: its outputs.
        want: the outputs of the hub, the same names and shapes.

    Returns:
        infinite ``error`` where outputs are not finite; ``bound`` is infinite where shaken runs are not.

    Raises:
        RuntimeFailure: the package cannot be read or run.
    """
    errors = {name: _relative(np.abs(got[name].astype(np.float64) - want[name]), want[name]) for name in want}
    chosen = _chosen(errors, feeds, batch)
    exact = _run(path, chosen, Shake(0, unit=0.0))
    squares: dict[str, Array] = {name: np.zeros(()) for name in want}
    for seed in range(DRAWS):
        shaken = _run(path, chosen, Shake(seed))
        squares = {n: squares[n] + np.square(shaken[n].astype(np.float64) - exact[n]) for n in want}
    found = []
    for name, error in errors.items():
        spread = np.sqrt(squares[name] / DRAWS)
        times = math.sqrt(2 * math.log(2 * max(error.size, 1) / CHANCE))
        bound = times * float(_relative(spread, want[name]).max(initial=0.0))
        largest = float(error.max(initial=0.0))
        found.append(HalfBound(name, *(one if math.isfinite(one) else math.inf for one in (largest, bound))))
    return max(found, key=_share)


def _share(one: HalfBound) -> float:
    if not math.isfinite(one.error):
        return math.inf
    return one.error / one.bound if one.bound else math.inf if one.error else 0.0


def _relative(difference: Array, want: Array) -> Array:
    """As parity has it: over the range of ``want``, or over its largest where all are equal."""
    wide = want.astype(np.float64)
    span = float(np.ptp(wide)) if wide.size else 0.0
    scale = span if span > 0 else float(np.abs(wide).max(initial=0.0)) or 1.0
    return np.asarray(difference / scale)


def _chosen(errors: Mapping[str, Array], feeds: Mapping[str, Samples], batch: int) -> dict[str, Array]:
    """The first batch of the samples, and the one with the largest error; all of them where the model has no batch axis."""
    if len({len(array) for array in feeds.values() if array.ndim}) > 1:
        return {name: np.asarray(array) for name, array in feeds.items()}
    count = max((len(array) for array in feeds.values() if array.ndim), default=batch) // batch
    worst = np.zeros(count)
    for error in errors.values():
        if error.ndim and len(error) == count * batch:
            worst = np.maximum(worst, np.nan_to_num(error.reshape(count, -1).max(axis=1, initial=0.0), nan=np.inf))
    picked = sorted({0, int(worst.argmax())})[:SAMPLES]
    rows = np.concatenate([np.arange(i * batch, (i + 1) * batch) for i in picked])
    return {name: np.asarray(array[rows] if array.ndim else array) for name, array in feeds.items()}


def _run(path: Path, feeds: dict[str, Array], shake: Shake) -> dict[str, Array]:
    with open_package(path, shake) as session:
        return run_dataset(session, feeds)
