"""Compressed weights whose errors the weights after them in the row make up for, where there is data to tell.

Column by column, a weight becomes zero or the nearest entry of its table, and what that changes in the layer's output is spread
over the columns still free (rescue/rounding.py has the formula). Which weights become zero follows from what that costs:
w^2 / U[i, i]^2.

Source: E. Frantar and D. Alistarh, "SparseGPT" (2023), sections 3.1 and 3.3; E. Frantar et al., "GPTQ" (2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.dataset import Dataset
from compiler.quantization.palettes import Palette, grouped
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.rounding import (
    DAMPING,
    MOST_COLUMNS,
    POSITIONS,
    Layer,
    Matrices,
    gather,
    matrices,
    restored,
)
from compiler.quantization.structure import constant_of, name_of
from runtimes.session import Array


def compensate(
    model: ir.Model,
    arrays: Mapping[str, Array],
    palettes: Mapping[str, Palette],
    options: QuantizeOptions,
    data: Dataset,
) -> dict[str, Array]:
    """New values for those of ``arrays`` (by initializer) that are the weight of one layer and no wider than MOST_COLUMNS.

    Args:
        arrays: the weights as compressed without data; their tables stay, and without tables their share of zeros.
    """
    layers = _layers(model, palettes)
    if not layers:
        return {}
    hessians = gather(model, [layer for _, layer in layers], data, POSITIONS)
    made: dict[str, Array] = {}
    for name, layer in layers:
        palette, hessian = palettes[name], hessians[name_of(layer.node)]
        upper = _upper(hessian)
        mask = _mask(layer.weight, upper, options.compression.sparsity) if palette.sparse else None
        tables = None if palette.bits is None else _tables(arrays[name], palette, layer)
        settled = _settled(layer.weight, upper, mask, tables)
        made[name] = np.ascontiguousarray(restored(layer, settled.astype(np.float32)))
    return made


def _layers(model: ir.Model, palettes: Mapping[str, Palette]) -> list[tuple[str, Layer]]:
    found = []
    for node in model.graph:
        value = node.inputs[1] if len(node.inputs) > 1 else None
        array, source = constant_of(value), node.inputs[0] if node.inputs else None
        if value is None or array is None or source is None or value.name not in palettes or len(value.uses()) != 1:
            continue
        weight = matrices(node, array)
        if weight is not None and weight.shape[2] <= MOST_COLUMNS and source.name and not source.is_initializer():
            found.append((str(value.name), Layer(node, source.name, len(weight), weight)))
    return found


def _upper(hessian: Matrices) -> Matrices:
    """The upper Cholesky factor of the inverse, [groups, columns, columns]."""
    diagonal = np.einsum("gii->gi", hessian)
    ridge = DAMPING * np.maximum(diagonal.mean(axis=1), 1e-30)
    damped = hessian + ridge[:, None, None] * np.eye(hessian.shape[1])
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(damped)), 1, 2)


def _mask(weight: Matrices, upper: Matrices, share: float) -> NDArray[np.bool_]:
    """What is kept: all but the ``share`` of weights that cost least, and what is zero already."""
    cost = (weight / np.einsum("gii->gi", upper)[:, None]) ** 2
    order = np.argsort(cost.reshape(-1), kind="stable")
    kept = np.ones(weight.size, bool)
    kept[order[: int(share * weight.size)]] = False
    return np.asarray(kept.reshape(weight.shape) & (weight != 0))


def _tables(array: Array, palette: Palette, layer: Layer) -> Matrices:
    """Each output channel's table, [groups, outputs, entries]; a short one repeats its last entry."""
    assert palette.bits is not None
    entries = 1 << palette.bits
    rows = []
    for row in grouped(array, palette):
        values = np.unique(row[row != 0] if palette.sparse else row)
        rows.append(np.pad(values, (0, entries - len(values)), mode="edge") if len(values) else np.zeros(entries))
    groups, outputs, _ = layer.weight.shape
    return np.repeat(np.array(rows, np.float64), groups * outputs // len(rows), axis=0).reshape(groups, outputs, -1)


def _settled(weight: Matrices, upper: Matrices, mask: NDArray[np.bool_] | None, tables: Matrices | None) -> Matrices:
    """[groups, outputs, columns]: every column settled after what the columns before it left over."""
    left, result = weight.copy(), np.empty_like(weight)
    for i in range(weight.shape[2]):
        column = left[:, :, i]
        if tables is not None:
            nearest = np.abs(tables - column[:, :, None]).argmin(axis=2)
            column = np.take_along_axis(tables, nearest[:, :, None], axis=2)[:, :, 0]
        result[:, :, i] = column if mask is None else column * mask[:, :, i]
        error = (left[:, :, i] - result[:, :, i]) / upper[:, i, i, None]
        left[:, :, i + 1 :] -= error[:, :, None] * upper[:, None, i, i + 1 :]
    return result
