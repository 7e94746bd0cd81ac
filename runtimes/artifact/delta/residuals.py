"""Residual arithmetic: what turns base and residuals into the result, and back.

    r = zigzag((order(new) - order(base)) mod 2^w)          encode; base is what was predicted (predict.py)
    new = unorder((order(base) + unzigzag(r)) mod 2^w)      decode

``order`` maps float bits to integers of the same order (identity for integers), so that close floats have small residuals;
zigzag moves the sign into the lowest bit, so that small residuals of either sign are small numbers.
Everything is integer arithmetic on little-endian words: exact, and the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.artifact.delta.format import ORDERED, WIDTH, Kind

Words = NDArray[np.unsignedinteger[Any]]


def words(data: bytes | memoryview, kind: Kind) -> Words:
    return np.frombuffer(data, f"<u{WIDTH[kind]}")


def encode(base: Words, new: Words, kind: Kind, mirrored: NDArray[np.bool_] | None = None) -> Words:
    """Residuals of ``new`` on ``base``, both [n] words of the kind's width; ``mirrored``, [n]: where their sign is turned round."""
    if kind is Kind.DIFF4:
        return _zigzag_nibbles(_nibbles(new, base, -1))
    difference = (_order(new) - _order(base)) if kind in ORDERED else new - base
    return _zigzag(_mirror(difference, mirrored))


def decode(base: Words, residuals: Words, kind: Kind, mirrored: NDArray[np.bool_] | None = None) -> Words:
    """The inverse of ``encode``: decode(base, encode(base, new)) == new for all bit patterns, NaN included."""
    if kind is Kind.DIFF4:
        return _nibbles(base, _unzigzag_nibbles(residuals), 1)
    difference = _mirror(_unzigzag(residuals), mirrored)
    if kind in ORDERED:
        return _unorder(_order(base) + difference)
    return base + difference


def _mirror(difference: Words, mirrored: NDArray[np.bool_] | None) -> Words:
    """Minus the difference where ``mirrored``: not x plus one. Arithmetic, because a choice per element costs ten times that."""
    if mirrored is None:
        return difference
    flag = mirrored.view(np.uint8).astype(difference.dtype)
    turned: Words = (difference ^ (np.zeros(1, flag.dtype) - flag)) + flag
    return turned


def _nibbles(a: NDArray[Any], b: NDArray[Any], sign: int) -> Words:
    """a + sign * b in both halves of every byte, modulo 16."""
    a, b = a.astype(np.int16), b.astype(np.int16)
    low, high = (a & 15) + sign * (b & 15), (a >> 4) + sign * (b >> 4)
    return ((low & 15) | ((high & 15) << 4)).astype(np.uint8)


def _zigzag_nibbles(value: Words) -> Words:
    made: Words = _ZIGZAG4[value & 15] | (_ZIGZAG4[value >> 4] << np.uint8(4))
    return made


def _unzigzag_nibbles(value: Words) -> Words:
    made: Words = _UNZIGZAG4[value & 15] | (_UNZIGZAG4[value >> 4] << np.uint8(4))
    return made


_ZIGZAG4 = np.array([2 * n if n < 8 else 31 - 2 * n for n in range(16)], np.uint8)
_UNZIGZAG4 = np.argsort(_ZIGZAG4).astype(np.uint8)


def _zigzag(value: Words) -> Words:
    signed = value.view(f"i{value.itemsize}")
    sign: Words = (signed >> signed.dtype.type(8 * value.itemsize - 1)).view(value.dtype)
    return (value << value.dtype.type(1)) ^ sign


def _unzigzag(value: Words) -> Words:
    one = value.dtype.type(1)
    return (value >> one) ^ (~(value & one) + one)


def _order(value: Words) -> Words:
    """Sign-magnitude to two's-complement order: negative x becomes -magnitude; +0 is 0, -0 is the smallest word.

    (-0 would otherwise share 0; giving it the one free code keeps the map a bijection.) With s all ones for a negative x,
    else zero: (magnitude xor s) - s, and the top bit again for -0.
    """
    top = value.dtype.type(1 << (value.itemsize * 8 - 1))
    signed = value.view(f"i{value.itemsize}")
    sign = (signed >> signed.dtype.type(8 * value.itemsize - 1)).view(value.dtype)
    made = ((value & ~top) ^ sign) - sign
    ordered: Words = made | ((value == top).astype(value.dtype) * top)
    return ordered


def _unorder(value: Words) -> Words:
    """The same steps backwards: minus x is its magnitude, with the top bit for what was negative."""
    top = value.dtype.type(1 << (value.itemsize * 8 - 1))
    signed = value.view(f"i{value.itemsize}")
    sign = (signed >> signed.dtype.type(8 * value.itemsize - 1)).view(value.dtype)
    bits: Words = ((value ^ sign) - sign) | (sign & top)
    return bits
