"""Wide residuals as a token of one byte and extra bits: the token says the magnitude, the extra bits, which are close to
uniform, stand in a stream of their own without coding.

    r < 16:  token = r, no extra bits
    else:    n = floor(log2 r), token = 16 + 4 * (n - 4) + (the two bits below the highest), extra = the lowest n - 2 bits
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import DeltaError

DIRECT: Final = 16
BLOCK: Final = (
    1 << 14
)  # fields joined at a time: a block's 64-bit arrays stay in a cache, which is worth a factor of two
TOKENS: Final = DIRECT + 4 * 28  # n from 4 to 31

_SMALL = np.arange(DIRECT, dtype=np.int64)
_LARGE = np.arange(TOKENS - DIRECT, dtype=np.int64)
# By token: the residual without its extra bits, and how many those are. Tokens above TOKENS are refused by the reader.
_BITS = np.concatenate([0 * _SMALL, 2 + _LARGE // 4])
_BASE = np.concatenate([_SMALL, (4 + _LARGE % 4) << (2 + _LARGE // 4)])
_FIRST = _BASE.astype(np.uint64)
_MASK = (np.uint64(1) << _BITS.astype(np.uint64)) - np.uint64(1)


def tokens_of(values: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """[n] tokens of ``values`` below 2^32.

    The highest bits of a float64 are n + 1023 and the bits below the highest one: a shift gives 4 n and two of these.
    """
    if values.itemsize == 2 and len(values) >= 1 << 16:
        return _tokens16().take(values)
    large = (values.astype(np.float64).view(np.int64) >> 50) - 4 * 1023
    return np.where(values < DIRECT, values, large).astype(np.uint8)


@cache
def _tokens16() -> NDArray[np.uint8]:
    return tokens_of(np.arange(1 << 16, dtype=np.uint32))


def extra_bits(tokens: NDArray[np.uint8]) -> int:
    """Extra bits of all ``tokens`` together."""
    return int(np.bincount(tokens, minlength=TOKENS)[:TOKENS] @ _BITS)


def split(values: NDArray[np.unsignedinteger[Any]]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """(token, extra bits, number of extra bits), each [n], of ``values`` below 2^32."""
    token = tokens_of(values)
    return token, values - _BASE.take(token), _BITS.take(token)


class BitReader:
    """Joins tokens with their extra bits. ``read(n)`` gives exactly n bytes of the stream of extra bits, or raises."""

    def __init__(self, read: Callable[[int], bytes], fail: Callable[[str], DeltaError]) -> None:
        self._read, self._fail = read, fail
        self._carry = b""
        self._bit = 0  # of the carried byte, already used

    def join(self, tokens: bytes, width: int) -> NDArray[np.unsignedinteger[Any]]:
        """Residuals, [len(tokens)] of ``width`` bytes. Raises for tokens that no such residual has."""
        token = np.frombuffer(tokens, np.uint8)
        if token.size and token.max() >= DIRECT + 4 * (8 * width - 4):
            raise self._fail(f"token {token.max()} does not fit {width} bytes")
        values = token.astype(f"<u{width}")
        for start in range(0, token.size, BLOCK):
            block = token[start : start + BLOCK]
            wide = np.flatnonzero(block >= DIRECT)
            if wide.size:
                values[start : start + BLOCK][wide] = self._wide(block.take(wide))
        return values

    def _wide(self, token: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """[n] residuals of tokens that have extra bits: fields of a few bits, one after the other."""
        bits = _BITS.take(token)
        ends = np.cumsum(bits)
        ends += self._bit
        pairs = self._pairs(int(ends[-1]))
        ends -= bits
        starts = ends.view(np.uint64)
        found = pairs.take(ends >> 5)
        starts &= np.uint64(31)
        found >>= starts
        found &= _MASK.take(token)
        found += _FIRST.take(token)
        return found

    def _pairs(self, end: int) -> NDArray[np.uint64]:
        """The bits from the carried byte's first to ``end``: every 32-bit word with the one behind it."""
        size = -(-end // 8)
        data = self._carry + self._read(size - len(self._carry))
        self._bit = end % 8
        self._carry = data[-1:] if self._bit else b""
        words = np.frombuffer(data + bytes(8 - len(data) % 4), "<u4").astype(np.uint64)
        return words[:-1] | words[1:] << np.uint64(32)
