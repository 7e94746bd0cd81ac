"""Writing protobuf messages: four wire types and nothing else.

Google's runtime and the generated OpenTelemetry classes would be 6 MiB for messages that fit in fifty lines; the tests hold every
byte written here against them. Source: protobuf.dev, "Encoding"; proto3: a field with its default value is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_VARINT, _FIXED64, _BYTES = 0, 1, 2


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative int64 is written as its two's complement
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def varint(number: int, value: int) -> bytes:
    """int64, bool or enum."""
    return _tag(number, _VARINT) + _varint(value) if value else b""


def fixed64(number: int, value: int) -> bytes:
    return _tag(number, _FIXED64) + struct.pack("<Q", value & (1 << 64) - 1) if value else b""


def chosen_fixed64(number: int, value: int) -> bytes:
    """sfixed64 of a oneof, which is written even if it is 0: its presence says which member was chosen."""
    return _tag(number, _FIXED64) + struct.pack("<q", value)


def double(number: int, value: float) -> bytes:
    """A double of a oneof or with explicit presence: written even if it is 0."""
    return _tag(number, _FIXED64) + struct.pack("<d", value)


def packed_fixed64(number: int, values: Sequence[int]) -> bytes:
    return message(number, struct.pack(f"<{len(values)}Q", *values)) if values else b""


def packed_doubles(number: int, values: Sequence[float]) -> bytes:
    return message(number, struct.pack(f"<{len(values)}d", *values)) if values else b""


def message(number: int, *parts: bytes) -> bytes:
    """A message, or bytes; written even if empty."""
    body = b"".join(parts)
    return _tag(number, _BYTES) + _varint(len(body)) + body


def text(number: int, value: str) -> bytes:
    """Lone surrogates, which no UTF-8 holds, become question marks."""
    return message(number, value.encode("utf-8", "replace")) if value else b""


def chosen_text(number: int, value: str) -> bytes:
    """A string of a oneof: written even if empty."""
    return message(number, value.encode("utf-8", "replace"))


def repeated(number: int, bodies: Iterable[bytes]) -> bytes:
    return b"".join(message(number, body) for body in bodies)
