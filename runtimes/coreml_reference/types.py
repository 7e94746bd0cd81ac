"""MIL tensor types as numpy sees them, packed sub-byte integers, and the limits on what is worth allocating.

numpy has no 1 to 6 bit integers: such tensors live in int8/uint8 arrays, one element per byte, with the range of the
narrow type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtimes.errors import ModelLoadError
from runtimes.session import Array

# One tensor of an edge model above this size is a damaged or hostile file, not a model.
MAX_TENSOR_BYTES = 4 << 30
MAX_RANK = 16  # MIL itself stops at 5 for most operations; numpy at 64


@dataclass(frozen=True, slots=True)
class DType:
    """A MIL element type: ``name`` as in MIL.proto, ``numpy`` the dtype holding it, ``bits`` its width when stored."""

    name: str
    numpy: str
    bits: int


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("BOOL", "bool", 8),
        DType("FLOAT16", "float16", 16),
        DType("FLOAT32", "float32", 32),
        DType("FLOAT64", "float64", 64),
        DType("INT4", "int8", 4),
        DType("INT8", "int8", 8),
        DType("INT16", "int16", 16),
        DType("INT32", "int32", 32),
        DType("INT64", "int64", 64),
        DType("UINT1", "uint8", 1),
        DType("UINT2", "uint8", 2),
        DType("UINT3", "uint8", 3),
        DType("UINT4", "uint8", 4),
        DType("UINT6", "uint8", 6),
        DType("UINT8", "uint8", 8),
        DType("UINT16", "uint16", 16),
        DType("UINT32", "uint32", 32),
        DType("UINT64", "uint64", 64),
    )
}

# The strings of `cast`, `quantize` and `constexpr_cast`.
CAST_NAMES: dict[str, str] = {
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
    "bool": "bool",
    **{n: n for n in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape; a dimension is None where the program leaves it open, ``shape`` None if the rank is."""

    dtype: DType
    shape: tuple[int | None, ...] | None

    def static_shape(self, where: str) -> tuple[int, ...]:
        """Raises ModelLoadError if a dimension is open: stored values always know their shape."""
        dims = self.shape
        if dims is None or any(d is None for d in dims):
            raise ModelLoadError(
                f"{where}: a stored value has an open shape.", remedy="Export the package again; this one is damaged."
            )
        return tuple(d for d in dims if d is not None)


@dataclass(frozen=True, slots=True)
class TensorList:
    """A MIL list: tensors of one type and shape; None where nothing was written. ``dynamic``: whether writing lengthens it."""

    elements: tuple[Array | None, ...]
    dtype: str
    shape: tuple[int | None, ...]
    dynamic: bool


@dataclass(slots=True)
class State:
    """What a stateful program keeps between its runs: the one value that operations change in place."""

    content: Array


def check_size(shape: Sequence[int], itemsize: int) -> None:
    """Refuse, before any allocation, a tensor over MAX_TENSOR_BYTES.

    Raises:
        ValueError: a dimension is negative or the product too large (wrapped by the caller, which knows the place).
    """
    if len(shape) > MAX_RANK or any(d < 0 for d in shape):
        raise ValueError(f"shape {list(shape)} is not possible")
    if math.prod(int(d) for d in shape) * itemsize > MAX_TENSOR_BYTES:
        raise ValueError(f"a tensor of shape {list(shape)} would exceed {MAX_TENSOR_BYTES >> 30} GiB")


def stored_bytes(dtype: DType, shape: Sequence[int]) -> int:
    """Bytes that ``shape`` takes when packed: sub-byte elements follow each other without gaps."""
    return (math.prod(shape) * dtype.bits + 7) // 8


def decode(raw: memoryview | bytes, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Packed little-endian bytes to an array, without a copy where the element fills whole bytes.

    Sub-byte elements are packed from the least significant bit upward; an element may cross a byte boundary.

    Raises:
        ValueError: the number of bytes is not what the shape needs.
    Source: MILBlob's SubByteTypes (packing order), `constexpr_lut_to_dense` (iOS16) documentation.
    """
    check_size(shape, np.dtype(dtype.numpy).itemsize)
    if len(raw) != stored_bytes(dtype, shape):
        raise ValueError(f"{len(raw)} bytes stored, {dtype.name}{list(shape)} needs {stored_bytes(dtype, shape)}")
    if dtype.bits >= 8:
        return np.frombuffer(raw, dtype=np.dtype(dtype.numpy).newbyteorder("<")).reshape(shape)
    values = unpack_bits(np.frombuffer(raw, dtype=np.uint8), dtype.bits, math.prod(shape))
    if dtype.name == "INT4":
        values = ((values ^ 8).astype(np.int8) - np.int8(8)).astype(np.int8)  # sign extension of four bits
    return values.reshape(shape)


def unpack_bits(packed: Array, bits: int, count: int) -> Array:
    """``count`` unsigned integers of ``bits`` each, least significant bit first. uint8 [n] to uint8 [count]."""
    flat = np.unpackbits(packed, bitorder="little", count=count * bits).reshape(count, bits)
    weights = (1 << np.arange(bits, dtype=np.uint16)).astype(np.uint16)
    return np.asarray((flat * weights).sum(axis=1, dtype=np.uint16).astype(np.uint8))
