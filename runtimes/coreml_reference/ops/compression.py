"""Quantization at run time, and constexpr operations that expand compressed weights.

Source: coremltools MIL ops, iOS17 quantization_ops.py, iOS16 constexpr_ops.py, iOS18 compression.py.
"""

from __future__ import annotations

import math

import numpy as np

from runtimes.coreml_reference.ops.elementwise import cast_to
from runtimes.coreml_reference.registry import Call, evaluates
from runtimes.coreml_reference.types import CAST_NAMES, check_size, unpack_bits
from runtimes.session import Array


def _along(vector: Array, x: Array, axis: int | None) -> Array:
    """A scalar as it is; a vector reshaped to lie along ``axis`` of ``x``."""
    if vector.size == 1:
        return vector.reshape(())
    if axis is None or vector.ndim != 1 or vector.size != x.shape[axis]:
        raise ValueError(f"parameters of shape {list(vector.shape)} do not fit {list(x.shape)}, axis {axis}")
    shape = [1] * x.ndim
    shape[axis] = vector.size
    return vector.reshape(shape)


def _parameters(call: Call, x: Array) -> tuple[Array, Array]:
    """scale and zero point, ready to broadcast."""
    axis = call.int("axis") if call.has("axis") else None
    scale = _along(call.wide("scale"), x, axis)
    if not call.has("zero_point"):
        return scale, np.zeros((), call.real)
    return scale, _along(call["zero_point"].astype(call.real), x, axis)


@evaluates("quantize")
def quantize(call: Call) -> Array:
    """q = clip(rint(x / scale) + zero_point, qmin, qmax), ties to even."""
    x, name = call.wide("input"), call.str("output_dtype")
    if name not in ("int8", "uint8"):
        raise ValueError(f"output_dtype {name!r} is not known")
    scale, zero = _parameters(call, x)
    steps = (x / scale).astype(np.float32)  # float32 is what MIL declares: what it cannot tell from a tie is one
    return cast_to(np.rint(steps) + zero, name)


@evaluates("dequantize")
def dequantize(call: Call) -> Array:
    """scale * (q - zero_point)"""
    q = call["input"]
    scale, zero = _parameters(call, q)
    return np.asarray(scale * (q.astype(call.real) - zero))


@evaluates("constexpr_affine_dequantize")
def constexpr_affine_dequantize(call: Call) -> Array:
    q = call["quantized_data"]
    scale, zero = _parameters(call, q)
    return np.asarray(scale * (q.astype(call.real) - zero))


@evaluates("constexpr_cast")
def constexpr_cast(call: Call) -> Array:
    name = call.str("output_dtype")
    if name not in CAST_NAMES:
        raise ValueError(f"output_dtype {name!r} is not known")
    return call["source_val"].astype(CAST_NAMES[name])


@evaluates("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(call: Call) -> Array:
    """scale * (data - offset); blocks of data.shape[i] / scale.shape[i] elements share one scale and offset."""
    data = call["data"].astype(call.real)
    scale = _spread(call.wide("scale"), data.shape)
    if not call.has("offset"):
        return np.asarray(scale * data)
    return np.asarray(scale * (data - _spread(call["offset"].astype(call.real), data.shape)))


def _spread(blocks: Array, shape: tuple[int, ...]) -> Array:
    """Repeat each element over its block. Raises ValueError if the blocks do not divide ``shape``."""
    if blocks.ndim != len(shape) or any(b < 1 or d % b for d, b in zip(shape, blocks.shape, strict=True)):
        raise ValueError(f"blocks of shape {list(blocks.shape)} do not divide {list(shape)}")
    for axis, (size, count) in enumerate(zip(shape, blocks.shape, strict=True)):
        if count not in (1, size):
            blocks = np.repeat(blocks, size // count, axis=axis)
    return blocks


@evaluates("constexpr_lut_to_dense")
def constexpr_lut_to_dense(call: Call) -> Array:
    """iOS16 packs the indices and gives the shape; iOS18 has typed indices, grouped tables and vectors."""
    lut = call["lut"]
    if not call.has("shape"):
        axis = call.int("vector_axis") if call.has("vector_axis") else None
        return _grouped_lookup(call["indices"], lut, axis)
    shape = call.ints("shape")
    check_size(shape, lut.dtype.itemsize)
    bits = lut.size.bit_length() - 1
    packed = call["indices"]
    if lut.ndim != 1 or lut.size != 1 << bits or packed.size * 8 < bits * math.prod(shape):
        raise ValueError(f"table of {lut.size} and {packed.size} bytes of indices do not fit shape {shape}")
    return lut[unpack_bits(packed, bits, math.prod(shape))].reshape(shape)


def _grouped_lookup(indices: Array, lut: Array, vector_axis: int | None) -> Array:
    """lut [*groups, entries, vector] applied to ``indices``; the vector fills ``vector_axis`` contiguously."""
    rank = indices.ndim
    if lut.ndim != rank + 2 or (lut.shape[-1] > 1 and vector_axis is None):
        raise ValueError(f"table {list(lut.shape)} does not fit indices {list(indices.shape)}")
    group_of = [
        _spread(np.arange(g).reshape([-1 if i == a else 1 for i in range(rank)]), _only(a, indices.shape))
        for a, g in enumerate(lut.shape[:rank])
    ]
    found = lut[(*group_of, indices.astype(np.int64))]  # [*indices.shape, vector]
    if vector_axis is None or lut.shape[-1] == 1:
        return np.asarray(found[..., 0])
    axis = vector_axis % rank
    shape = list(indices.shape)
    shape[axis] *= lut.shape[-1]
    return np.moveaxis(found, -1, axis + 1).reshape(shape)


def _only(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d if i == axis else 1 for i, d in enumerate(shape))


@evaluates("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(call: Call) -> Array:
    """``nonzero_data`` in row-major order where the mask is set, zero elsewhere; iOS16 packs the mask into bytes."""
    mask = call["mask"]
    if call.has("shape"):
        shape = call.ints("shape")
        check_size(shape, 8)
        if mask.size * 8 < math.prod(shape):
            raise ValueError(f"{mask.size} bytes of mask do not cover shape {shape}")
        mask = unpack_bits(mask, 1, math.prod(shape)).reshape(shape)
    return _densify(call["nonzero_data"], mask)


def _densify(data: Array, mask: Array) -> Array:
    if np.count_nonzero(mask) != data.size:
        raise ValueError(f"the mask sets {np.count_nonzero(mask)} elements, {data.size} are stored")
    dense = np.zeros(mask.shape, dtype=data.dtype)
    dense[mask != 0] = data
    return dense


@evaluates("constexpr_lut_to_sparse")
def constexpr_lut_to_sparse(call: Call) -> tuple[Array, ...]:
    mask, lut = call["indices_mask"], call["lut"]
    axis = call.int("vector_axis") if call.has("vector_axis") else None
    dense = _grouped_lookup(_densify(call["indices_nonzero_data"], mask), lut, axis)
    if axis is not None:
        mask = np.repeat(mask, lut.shape[-1], axis=axis)
    return mask, dense[mask != 0]


@evaluates("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(call: Call) -> tuple[Array, ...]:
    mask = call["data_mask"]
    dense = _densify(call["nonzero_data"], mask).astype(call.real)
    if call.has("offset"):
        dense = dense - _spread(call["offset"].astype(call.real), dense.shape)
    return mask, (_spread(call.wide("scale"), dense.shape) * dense)[mask != 0]
