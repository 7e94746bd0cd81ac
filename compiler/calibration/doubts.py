"""What makes samples doubtful for calibration, each doubt with its evidence. Seen in one pass, in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from runtimes.session import Array

# Fewer samples than this leave the ranges of a net's activations to chance (post-training papers use 100 to 1000).
FEW_SAMPLES: Final = 32
REMEMBERED: Final = 65_536  # samples whose digests are kept to find duplicates: 1 MiB per input
DIGEST_BYTES: Final = 16
LOOKED_AT: Final = 64  # samples whose neighbouring values are compared
COLOURS: Final = 3
# Colour pictures lying the right way change less from pixel to pixel than from colour to colour. Where the opposite holds by this
# factor, the two were mixed up.
MIXED_UP: Final = 0.8
# Of pixels normalised once by any usual mean and deviation, none lies further out than (0 - 0.485) / 0.225 or 255 / 127.5 - 1;
# twice takes them to 9 and beyond.
NORMALISED_TWICE: Final = (7.0, 16.0)


@dataclass(slots=True)
class Scan:
    """One input as it passes. ``digests``: of the first samples, DIGEST_BYTES each. ``steps``: see _neighbours."""

    count: int = 0
    elements: int = 0
    low: float = np.inf
    high: float = -np.inf
    whole: bool = True  # only whole numbers so far
    shape: tuple[int, ...] = ()
    real: bool = False
    digests: bytes = b""
    steps: tuple[float, float] = (0.0, 0.0)

    def update(self, rows: Array) -> None:
        """``rows``: [count, ...], finite."""
        self.shape, self.real = rows.shape[1:], rows.dtype.kind == "f"
        if rows.size:
            self.low, self.high = min(self.low, float(rows.min())), max(self.high, float(rows.max()))
            self.whole = self.whole and bool((rows == np.rint(rows)).all()) if self.real else self.whole
        fresh = max(0, REMEMBERED - self.count)
        self.digests += b"".join(hashlib.blake2b(_bytes(r), digest_size=DIGEST_BYTES).digest() for r in rows[:fresh])
        near = _neighbours(rows[: max(0, LOOKED_AT - self.count)])
        self.steps = (self.steps[0] + near[0], self.steps[1] + near[1])
        self.count += len(rows)
        self.elements += rows.size


def _bytes(row: Array) -> memoryview:
    return np.ascontiguousarray(row).data


def _neighbours(rows: Array) -> tuple[float, float]:
    """Sums of |difference| between values one apart in memory, and COLOURS apart; zeros for what is no colour picture."""
    if rows.ndim != 4 or COLOURS not in (rows.shape[1], rows.shape[3]) or rows.dtype.kind != "f" or not rows.size:
        return 0.0, 0.0
    flat = rows.reshape(len(rows), -1)
    if flat.shape[1] <= COLOURS:
        return 0.0, 0.0
    one, far = (np.abs(np.diff(flat[:, ::1])), np.abs(flat[:, COLOURS:] - flat[:, :-COLOURS]))
    return float(one.mean(dtype=np.float64)) * len(rows), float(far.mean(dtype=np.float64)) * len(rows)


def doubts(scans: Mapping[str, Scan], labels: Array | None) -> Iterator[str]:
    """Sentences for people, without a full stop."""
    count = next(iter(scans.values())).count
    if count < FEW_SAMPLES:
        yield f"only {count} samples; ranges from fewer than {FEW_SAMPLES} are left to chance"
    for name, scan in scans.items():
        if scan.elements > 1 and scan.low == scan.high:
            yield f"input {name!r} has the same value {scan.low} everywhere"
    copies, looked = _duplicates(scans)
    if copies:
        yield f"{copies} of {looked} samples are exact duplicates of others"
    for name, scan in scans.items():
        yield from _scale(name, scan)
        yield from _layout(name, scan)
    yield from _missing_classes(labels)


def _duplicates(scans: Mapping[str, Scan]) -> tuple[int, int]:
    """How many of the remembered samples equal an earlier one in every input, and how many are remembered."""
    columns = [np.frombuffer(scan.digests, np.uint8).reshape(-1, DIGEST_BYTES) for scan in scans.values()]
    table: NDArray[np.uint8] = np.concatenate(columns, axis=1)
    return len(table) - len(np.unique(table, axis=0)), len(table)


def _scale(name: str, scan: Scan) -> Iterator[str]:
    if not scan.real or len(scan.shape) < 2 or not scan.elements:
        return
    peak = max(abs(scan.low), abs(scan.high))
    if 0 < peak <= 1 / 255 + 1e-6:  # pixels divided by 255 twice; no usual preprocessing gets there
        yield f"input {name!r} never exceeds {peak:.3g}, which is what normalising twice leaves"
    picture = len(scan.shape) == 3 and COLOURS in (scan.shape[0], scan.shape[2])
    least, most = NORMALISED_TWICE
    if picture and not scan.whole and scan.low < -least and scan.high > least and peak <= most:
        yield (
            f"input {name!r} reaches from {scan.low:.1f} to {scan.high:.1f}, which is what subtracting the mean twice leaves: "
            f"pixels normalised once stay within -2.2 to 2.7"
        )


def _layout(name: str, scan: Scan) -> Iterator[str]:
    one, far = scan.steps
    if not one or not far or scan.shape[0] == scan.shape[2]:
        return
    channels_first = scan.shape[0] == COLOURS
    if channels_first and far < MIXED_UP * one:
        yield (
            f"input {name!r} has channels first, but values three apart are alike ({far / one:.2f} of the step between "
            f"neighbours): channels-last pictures were reshaped instead of transposed"
        )
    if not channels_first and one < MIXED_UP * far:
        yield (
            f"input {name!r} has channels last, but neighbouring values are alike ({one / far:.2f} of the step between values "
            f"three apart): channels-first pictures were reshaped instead of transposed"
        )


def _missing_classes(labels: Array | None) -> Iterator[str]:
    """Labels count from 0: a class between that no sample has was left out, not unknown."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size or labels.min() < 0:
        return
    total = int(labels.max()) + 1
    present = np.unique(labels)
    if total <= 2 * labels.size and len(present) < total:
        missing = np.setdiff1d(np.arange(total), present)
        yield f"{len(missing)} of the classes 0 to {total - 1} have no sample, first class {missing[0]}"
