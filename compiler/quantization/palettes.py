"""Weights that take their values from a table: which tensors do, how k-means fills the tables, and the marks that say so.

A palettized weight is an ordinary float32 initializer whose values happen to be few: every format computes the same numbers. The
model's metadata says under PALETTES_KEY which initializers these are and which of their channels share a table, so that a format
that can store indices finds the tables again by looking at the values (docs/adr/0013-compressed-weights.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.session import Array

if TYPE_CHECKING:
    import onnx_ir as ir

PALETTES_KEY: Final = "edgewright.palettes"  # model metadata
ITERATIONS: Final = 60
COARSE: Final = 256
INT8_MAX: Final = 127


@dataclass(frozen=True, slots=True)
class Palette:
    """How the values of one weight repeat.

    Args:
        bits: an index takes so many; None for a weight that is sparse only.
        axis: the output channels, along which groups share a table; None for one table.
        groups: how many tables, dividing the channels into runs of equal length.
        sparse: whether zeros are left out of the file (a table then holds the others).
        int8_table: whether the entries of a table are multiples of one scale per table, -127 to 127 times.
    """

    bits: int | None
    axis: int | None = None
    groups: int = 1
    sparse: bool = False
    int8_table: bool = False


def write_palettes(model: ir.Model, palettes: Mapping[str, Palette]) -> None:
    """Record in the model's metadata how the named initializers repeat."""
    document = {name: asdict(palette) for name, palette in sorted(palettes.items())}
    model.metadata_props[PALETTES_KEY] = json.dumps(document, separators=(",", ":"))


def read_palettes(model: ir.Model) -> dict[str, Palette]:
    """What ``write_palettes`` recorded; empty for other models."""
    document = json.loads(model.metadata_props.get(PALETTES_KEY, "{}"))
    return {name: Palette(**fields) for name, fields in document.items()}


def sparsified(weight: Array, share: float) -> Array:
    """``weight`` with its ``share`` of smallest magnitudes set to zero; of equals, the first in memory go."""
    flat = weight.reshape(-1).copy()
    flat[np.argsort(np.abs(flat), kind="stable")[: int(share * flat.size)]] = 0
    return flat.reshape(weight.shape)


def palettized(weight: Array, palette: Palette) -> Array:
    """``weight`` with every value replaced by the nearest of its group's table; zeros stay where the palette is sparse."""
    assert palette.bits is not None
    rows = grouped(weight, palette)
    result = np.empty_like(rows)
    for row, out in zip(rows, result, strict=True):
        free = row != 0 if palette.sparse else np.ones(row.shape, bool)
        table = _table(row[free], 1 << palette.bits, palette.int8_table)
        out[:] = 0
        out[free] = nearest(row[free], table)
    return ungrouped(result, weight.shape, palette)


def grouped(weight: Array, palette: Palette) -> Array:
    """[groups, elements]: the elements that share a table, in one row each."""
    front = weight if palette.axis is None else np.moveaxis(weight, palette.axis, 0)
    return np.ascontiguousarray(front).reshape(palette.groups, -1)


def ungrouped(rows: Array, shape: tuple[int, ...], palette: Palette) -> Array:
    """The inverse of ``grouped``."""
    if palette.axis is None:
        return rows.reshape(shape)
    front = (shape[palette.axis], *(d for i, d in enumerate(shape) if i != palette.axis))
    return np.ascontiguousarray(np.moveaxis(rows.reshape(front), 0, palette.axis))


def nearest(values: Array, table: Array) -> Array:
    """Each value's nearest entry of the sorted ``table``; halfway the lower one."""
    edges = (table[1:].astype(np.float64) + table[:-1]) / 2
    return np.asarray(table[np.searchsorted(edges, values, side="left")])


def _table(values: Array, entries: int, int8: bool) -> NDArray[np.float32]:
    """Sorted distinct entries, at most ``entries``."""
    if values.size == 0:
        return np.zeros(1, np.float32)
    table = k_means(values, entries)
    if not int8:
        return table
    scale = np.float32(np.abs(table).max() / INT8_MAX) or np.float32(1)
    codes = np.unique(np.rint(table / scale).astype(np.int8))
    return np.asarray(codes.astype(np.float32) * scale)


def k_means(values: Array, entries: int) -> NDArray[np.float32]:
    """Sorted centres of one-dimensional clusters, at most ``entries``, with the least squared error that Lloyd's steps find.

    On sorted values a cluster is a run between two boundaries, so that a step costs two look-ups in running sums. The steps start
    from the quantiles, from the density to the power of one third (the optimum for many entries), and for few entries from the
    exact optimum over COARSE runs of neighbours.

    Source: S. P. Lloyd, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28 (1982); P. F. Panter and W. Dite,
    Quantization distortion in pulse-count modulation with nonuniform spacing of levels, Proc. IRE 39 (1951); H. Wang and M. Song,
    Ckmeans.1d.dp, The R Journal 3 (2011).
    """
    ordered = np.sort(values.reshape(-1).astype(np.float64))
    distinct = np.unique(ordered.astype(np.float32))
    if len(distinct) <= entries:
        return distinct
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    best, least = distinct[:1], np.inf
    for start in _starts(ordered, sums, entries):
        centres = _lloyd(ordered, sums, start)
        found = np.unique(centres.astype(np.float32))
        error = float(((nearest(ordered, found) - ordered) ** 2).sum())
        if error < least:
            best, least = found, error
    return best


def _starts(ordered: NDArray[np.float64], sums: NDArray[np.float64], entries: int) -> list[NDArray[np.float64]]:
    middles = (np.arange(entries) + 0.5) / entries
    counts, edges = np.histogram(ordered, bins=min(2048, max(64, len(ordered) // 16)))
    density = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    starts = [np.quantile(ordered, middles), np.interp(middles * density[-1], density, edges)]
    if entries <= COARSE // 4:
        between = np.interp(np.arange(1, COARSE) / COARSE * density[-1], density, edges)
        cuts = np.unique(np.concatenate([[0], np.searchsorted(ordered, between), [len(ordered)]]))
        starts.append(_best_runs(ordered, sums, cuts, entries))
    return starts


def _best_runs(
    ordered: NDArray[np.float64], sums: NDArray[np.float64], cuts: NDArray[np.int64], entries: int
) -> NDArray[np.float64]:
    """Means of the ``entries`` runs, ending at ``cuts``, with the least squared error: dynamic programming over the last run."""
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])[cuts]
    total, count = sums[cuts], cuts.astype(np.float64)
    size = count[None] - count[:, None]
    error = squares[None] - squares[:, None] - (total[None] - total[:, None]) ** 2 / np.maximum(size, 1)
    error[size <= 0] = np.inf
    best, came_from = error[0], []
    for _ in range(min(entries, len(cuts) - 1) - 1):
        through = best[:, None] + error
        came_from.append(through.argmin(axis=0))
        best = np.take_along_axis(through, came_from[-1][None], axis=0)[0]
    end, centres = len(cuts) - 1, []
    for table in [*came_from[::-1], np.zeros(len(cuts), np.int64)]:
        begin = int(table[end])
        centres.append((total[end] - total[begin]) / max(count[end] - count[begin], 1))
        end = begin
    return np.array(centres[::-1])


def _lloyd(
    ordered: NDArray[np.float64], sums: NDArray[np.float64], centres: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Centres after ITERATIONS steps, or fewer where nothing moves any more. An empty cluster keeps its centre."""
    for _ in range(ITERATIONS):
        cuts = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2, side="right")
        first, last = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(ordered)]])
        size = last - first
        moved = np.where(size > 0, (sums[last] - sums[first]) / np.maximum(size, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = np.sort(moved)
    return centres
