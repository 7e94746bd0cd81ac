"""What a plan puts into each stream: literals, tokens with what the decoder knows of them, extra bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.publish.delta.plan import Plan
from compiler.publish.delta.rans import Contexts
from runtimes.artifact.delta.contexts import contexts
from runtimes.artifact.delta.format import ORDERED, WIDTH, Kind, Segment, stream_id
from runtimes.artifact.delta.residuals import encode, words
from runtimes.artifact.delta.tokens import split

Stream = tuple[bytes, Contexts | None]
_Extra = tuple[NDArray[np.int64], NDArray[np.int64]]  # extra bits, how many


def streams_of(base: bytes, new: bytes, plan: Plan) -> dict[int, Stream]:
    """Contents by stream id. A stream of extra bits that would be empty is left out."""
    after = dict(zip(_starts(plan), plan, strict=True))
    found: dict[int, Stream] = {}
    for kind in sorted({segment.kind for segment in plan} - {Kind.COPY}):
        of_kind = {start: segment for start, segment in after.items() if segment.kind is kind}
        if kind is Kind.LITERAL:
            found[stream_id(kind)] = b"".join(new[start : start + s.size] for start, s in of_kind.items()), None
        else:
            found |= _residual_streams(base, new, kind, of_kind)
    return found


def _starts(plan: Plan) -> list[int]:
    ends = np.cumsum([0, *(segment.size for segment in plan)])
    return [int(end) for end in ends[:-1]]


def _residual_streams(base: bytes, new: bytes, kind: Kind, segments: dict[int, Segment]) -> dict[int, Stream]:
    tokens: list[NDArray[np.uint8]] = []
    known: list[Contexts] = []
    extra: list[_Extra] = []
    for index, (start, segment) in enumerate(segments.items()):
        before = words(base[segment.base : segment.base + segment.size], kind)
        residuals = encode(before, words(new[start : start + segment.size], kind), kind)
        known.append(contexts(before, index, floats=kind in ORDERED))
        token, bits, count = split(residuals) if WIDTH[kind] > 1 else (residuals.astype(np.uint8), *_NONE)
        tokens.append(token)
        extra.append((bits[count > 0], count[count > 0]))
    found: dict[int, Stream] = {stream_id(kind): (np.concatenate(tokens).tobytes(), np.concatenate(known))}
    packed = _packed(*(np.concatenate(column) for column in zip(*extra, strict=True)))
    return found | ({stream_id(kind, 1): (packed, None)} if packed else {})


_NONE: _Extra = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def _packed(bits: NDArray[np.int64], counts: NDArray[np.int64]) -> bytes:
    """Fields of ``counts`` bits one after the other, least significant bit first.

    A field lies in one or two 32-bit words; adding disjoint fields is exact in float64, which bincount adds in.
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    starts = ends - counts
    shifted = bits.astype(np.uint64) << (starts & 31).astype(np.uint64)
    size = total // 32 + 2
    low = np.bincount(starts >> 5, (shifted & np.uint64(0xFFFFFFFF)).astype(np.float64), size)
    high = np.bincount((starts >> 5) + 1, (shifted >> np.uint64(32)).astype(np.float64), size)
    return (low + high).astype("<u4").tobytes()[: -(-total // 8)]
