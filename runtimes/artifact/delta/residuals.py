"""Residual arithmetic: what turns base and residuals into the result, and back.

    r = zigzag((order(new) - order(base)) mod 2^w)          encode
    new = unorder((order(base) + unzigzag(r)) mod 2^w)      decode

``order`` maps float bits to integers of the same order (identity for integers), so that close floats have small residuals;
zigzag moves the sign into the lowest bit, so that small residuals of either sign are small numbers.
Everything is integer arithmetic on little-endian words: exact, and the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta.format import WIDTH, Kind

Words = NDArray[np.unsignedinteger[Any]]


def words(data: bytes, kind: Kind) -> Words:
    return np.frombuffer(data, f"<u{WIDTH[kind]}")


def encode(base: Words, new: Words, kind: Kind) -> Words:
    """Residuals of ``new`` on ``base``, both [n] words of the kind's width."""
    ordered = kind in (Kind.ORDERED16, Kind.ORDERED32)
    difference = (_order(new) - _order(base)) if ordered else new - base
    return _zigzag(difference)


def decode(base: Words, residuals: Words, kind: Kind) -> Words:
    """The inverse of ``encode``: decode(base, encode(base, new)) == new for all bit patterns, NaN included."""
    difference = _unzigzag(residuals)
    if kind in (Kind.ORDERED16, Kind.ORDERED32):
        return _unorder(_order(base) + difference)
    return base + difference


def _zigzag(value: Words) -> Words:
    bits = value.itemsize * 8
    one = value.dtype.type(1)
    sign = value >> value.dtype.type(bits - 1)
    return (value << one) ^ (~sign + one)  # ~0 + 1 = 0; ~1 + 1 = all ones


def _unzigzag(value: Words) -> Words:
    one = value.dtype.type(1)
    return (value >> one) ^ (~(value & one) + one)


def _order(value: Words) -> Words:
    """Sign-magnitude to two's-complement order: negative x becomes -magnitude; +0 is 0, -0 is the smallest word.

    (-0 would otherwise share 0; giving it the one free code keeps the map a bijection.)
    """
    top = value.dtype.type(1 << (value.itemsize * 8 - 1))
    magnitude = value & ~top
    negative = np.where(magnitude == 0, top, ~magnitude + value.dtype.type(1))
    return np.where(value & top, negative, value).astype(value.dtype, copy=False)


def _unorder(value: Words) -> Words:
    top = value.dtype.type(1 << (value.itemsize * 8 - 1))
    negative = np.where(value == top, top, (~value + value.dtype.type(1)) | top)
    return np.where(value & top, negative, value).astype(value.dtype, copy=False)
