"""Weights as tables of values and as sparse data: the constexpr operations that keep them small in the file.

    table                    iOS16 constexpr_lut_to_dense (1, 2, 4, 6, 8 bits, one table); iOS18 also 3 bits and tables per group
    zeros left out           iOS16 constexpr_sparse_to_dense
    table of int8            iOS18 constexpr_blockwise_shift_scale -> constexpr_lut_to_dense
    table and zeros left out iOS18 constexpr_lut_to_sparse -> constexpr_sparse_to_dense
    int8 and zeros left out  iOS18 constexpr_sparse_blockwise_shift_scale -> constexpr_sparse_to_dense

The values are the hub's: the tables are found again in them (compiler/quantization/palettes.py), and what does not repeat as its
mark says is written dense. Source: coremltools MIL ops, iOS16 constexpr_ops.py and iOS18 compression.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.coreml.constants import Array, Weight
from compiler.exporters.coreml.target import Var
from compiler.exporters.coreml.unsupported import Unsupported
from compiler.quantization.palettes import INT8_MAX, Palette, grouped, ungrouped

if TYPE_CHECKING:
    from compiler.exporters.coreml.context import Context

EARLY_BITS = (1, 2, 4, 6, 8)  # of iOS16's tables: "NUM_PALETTES needs to be one of {2, 4, 16, 64 or 256}"
EARLY, JOINT = 16, 18  # the releases that brought tables and sparse data, and the ways to combine them


@dataclass(frozen=True, slots=True)
class _Tables:
    """``indices``: uint8, of the weight's shape (0 where a sparse weight is zero); ``tables``: [groups, 2**bits] float32."""

    indices: Array
    tables: Array


def compressed_var(ctx: Context, weight: Weight, name: str) -> Var | None:
    """``weight`` as constexpr operations ending in ``name``, or None where it is better written dense.

    Raises Unsupported where the deployment target lacks the operations.
    """
    palette = weight.palette
    if palette is None or weight.data.ndim == 0 or weight.data.size < 2:
        return None
    mask = weight.data != weight.zero() if palette.sparse else None
    if mask is not None and not _worth_a_mask(mask, _stored_bits(ctx, weight, palette)):
        if palette.bits is None:
            return None
        mask = None
    _check_target(ctx, palette, weight.quantized)
    if palette.bits is None:
        assert mask is not None
        return _sparse(ctx, weight, mask, name)
    found = _find_tables(weight.data, palette, mask)
    if found is None:
        ctx.notes.append(f"{name} does not repeat in tables of {1 << palette.bits}: it is stored as floats")
        return None
    return _palettized(ctx, found, palette, mask, name)


def _stored_bits(ctx: Context, weight: Weight, palette: Palette) -> int:
    if palette.bits is not None:
        return palette.bits
    return 8 * (weight.data.dtype.itemsize if weight.quantized else np.dtype(ctx.float_dtype).itemsize)


def _worth_a_mask(mask: Array, bits: int) -> bool:
    """Whether a bit per element costs less than the elements that it saves. Nothing but zeros has no data to store."""
    kept = int(np.count_nonzero(mask))
    return kept > 0 and kept * bits + mask.size < mask.size * bits


def _check_target(ctx: Context, palette: Palette, quantized: bool) -> None:
    joint = palette.sparse and (quantized or palette.bits is not None)
    several = palette.groups > 1 or palette.int8_table or (palette.bits is not None and palette.bits not in EARLY_BITS)
    needed = JOINT if joint or several else EARLY
    if ctx.target.version < needed:
        what = "sparse weights that are integers or from a table" if joint else "weights from a table"
        if several:
            what = "tables per group, of 3 bits or of int8"
        elif palette.bits is None and not quantized:
            what = "sparse weights"
        raise Unsupported(
            f"{what} need iOS{needed}, the deployment target is {ctx.target.name}",
            f"Raise the deployment target to iOS{needed}, or take another precision.",
        )


def _sparse(ctx: Context, weight: Weight, mask: Array, name: str) -> Var:
    if weight.quantized:
        scale, zero = weight.spread()
        if np.any(zero):
            raise Unsupported("sparse integers have the zero point 0", "Quantize symmetrically.")
        kept, data = ctx.mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=_narrow(mask, 1),
            nonzero_data=weight.data[mask],
            scale=scale.astype(ctx.float_dtype),
            name=ctx.names.claim(f"{name}_sparse"),
        )
        return ctx.mb.constexpr_sparse_to_dense(nonzero_data=data, mask=kept, name=name)
    data = weight.data[mask].astype(ctx.float_dtype)
    if ctx.target.version >= JOINT:
        return ctx.mb.constexpr_sparse_to_dense(nonzero_data=data, mask=_narrow(mask, 1), name=name)
    packed = np.packbits(mask.reshape(-1), bitorder="little")
    return ctx.mb.constexpr_sparse_to_dense(
        nonzero_data=data, mask=packed, shape=np.array(mask.shape, np.uint32), name=name
    )


def _palettized(ctx: Context, found: _Tables, palette: Palette, mask: Array | None, name: str) -> Var:
    assert palette.bits is not None
    if ctx.target.version < JOINT:
        return ctx.mb.constexpr_lut_to_dense(
            indices=_packed(found.indices, palette.bits),
            lut=found.tables[0].astype(ctx.float_dtype),
            shape=np.array(found.indices.shape, np.uint32),
            name=name,
        )
    lut = _lut(ctx, found, palette, name)
    if mask is None:
        return ctx.mb.constexpr_lut_to_dense(indices=_narrow(found.indices, palette.bits), lut=lut, name=name)
    kept, data = ctx.mb.constexpr_lut_to_sparse(
        indices_mask=_narrow(mask, 1),
        indices_nonzero_data=_narrow(found.indices[mask], palette.bits),
        lut=lut,
        name=ctx.names.claim(f"{name}_sparse"),
    )
    return ctx.mb.constexpr_sparse_to_dense(nonzero_data=data, mask=kept, name=name)


def _lut(ctx: Context, found: _Tables, palette: Palette, name: str) -> Any:
    """The tables as iOS18 wants them, [*groups, entries, 1]; of int8 where each is a multiple of one scale."""
    groups = [1] * found.indices.ndim
    if palette.axis is not None:
        groups[palette.axis] = palette.groups
    coded = _int8_tables(found.tables) if palette.int8_table else None
    if coded is None:
        return found.tables.reshape(*groups, -1, 1).astype(ctx.float_dtype)
    codes, scales = coded
    return ctx.mb.constexpr_blockwise_shift_scale(
        data=codes.reshape(*groups, -1, 1),
        scale=scales.reshape(*groups, 1, 1).astype(ctx.float_dtype),
        name=ctx.names.claim(f"{name}_table"),
    )


def _find_tables(data: Array, palette: Palette, mask: Array | None) -> _Tables | None:
    """The distinct values of each group and which of them each element is; None where a group has more than fit."""
    assert palette.bits is not None
    entries = 1 << palette.bits
    rows = grouped(data, palette)
    kept = np.ones(rows.shape, bool) if mask is None else grouped(mask, palette)
    indices, tables = np.zeros(rows.shape, np.uint8), np.zeros((len(rows), entries), np.float32)
    for group, row in enumerate(rows):
        table, found = np.unique(row[kept[group]], return_inverse=True)
        if len(table) > entries:
            return None
        indices[group, kept[group]] = found.reshape(-1)
        if len(table):
            tables[group] = np.pad(table, (0, entries - len(table)), mode="edge")
    return _Tables(ungrouped(indices, data.shape, palette), tables)


def _int8_tables(tables: Array) -> tuple[Array, Array] | None:
    """Codes [groups, entries] and scales [groups] with codes * scales == tables exactly, or None."""
    peaks = np.abs(tables).max(axis=1)
    scales = np.where(peaks > 0, peaks / np.float32(INT8_MAX), np.float32(1)).astype(np.float32)
    for shifted in (scales, np.nextafter(scales, np.float32(0)), np.nextafter(scales, np.float32(np.inf))):
        codes = np.rint(tables / shifted[:, None])
        exact = (codes.astype(np.float32) * shifted[:, None] == tables).all(axis=1)
        scales = np.where(exact, shifted, scales)
    codes = np.rint(tables / scales[:, None])
    if not np.array_equal(codes.astype(np.float32) * scales[:, None], tables):
        return None
    return codes.astype(np.int8), scales


def _narrow(values: Array, bits: int) -> Array:
    """Unsigned integers as coremltools marks the narrow ones: uint8 whose dtype says in its metadata how few bits to store."""
    from coremltools.converters.mil.mil import types

    return (
        values.astype(np.uint8) if bits == 8 else values.astype(np.uint8).astype(getattr(types, f"np_uint{bits}_dtype"))
    )


def _packed(indices: Array, bits: int) -> Array:
    """``bits`` of each index after the other, least significant bit first, in uint8."""
    flat = np.unpackbits(indices.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(flat.reshape(-1), bitorder="little")
