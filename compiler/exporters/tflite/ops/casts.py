"""Casts that LiteRT's CAST does in steps, or not at all: four-bit integers, uint64, and float bits."""

from __future__ import annotations

import numpy as np

from compiler.exporters.tflite.context import LoweringContext
from compiler.exporters.tflite.tensors import Tensor

FOUR_BITS = ("int4", "uint4")
_FLOAT, _INT = np.dtype(np.float32), np.dtype(np.int32)


def cast(context: LoweringContext, source: Tensor, result: Tensor) -> None:
    """Fill ``result`` with the values of ``source`` in its type.

    Between uint64 and int64 the bits are the same. Four bits unpack to float32 and pack from it alone; the kernel would saturate
    where ONNX's cast keeps the low bits.
    """
    names = (source.dtype.name, result.dtype.name)
    if set(names) == {"uint64", "int64"}:
        context.emit("BITCAST", [source], [result], "BitcastOptions")
        return
    if names[0] in FOUR_BITS and result.dtype != _FLOAT:
        source = _step(context, source, _FLOAT)
    elif names[0] == "uint64":
        source = _bits(context, source)
    if names[1] in FOUR_BITS:
        source = _wrapped(context, _step(context, source, _INT), result.dtype)
    context.emit("CAST", [source], [result], None, to=result.dtype)


def _step(context: LoweringContext, source: Tensor, dtype: np.dtype[np.generic]) -> Tensor:
    if source.dtype == dtype:
        return source
    result = context.writer.tensor("step", source.shape, dtype, None)
    context.emit("CAST", [source], [result], None, to=dtype)
    return result


def _bits(context: LoweringContext, source: Tensor) -> Tensor:
    result = context.writer.tensor("bits", source.shape, np.dtype(np.int64), None)
    context.emit("BITCAST", [source], [result], "BitcastOptions")
    return result


def _wrapped(context: LoweringContext, source: Tensor, dtype: np.dtype[np.generic]) -> Tensor:
    """The low four bits as float32: mod(x + 8, 16) - 8 where the type has a sign."""
    offset = context.literal(np.asarray(8 if dtype.name == "int4" else 0, np.int32), "offset")
    moved, low, back = (context.temporary(source.shape, source) for _ in range(3))
    context.emit("ADD", [source, offset], [moved], "AddOptions")
    context.emit("FLOOR_MOD", [moved, context.literal(np.asarray(16, np.int32), "sixteen")], [low])
    context.emit("SUB", [low, offset], [back], "SubOptions")
    return _step(context, back, _FLOAT)
