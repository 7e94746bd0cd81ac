"""What a plan puts into each stream: literals, tokens with what the decoder knows of them, extra bits, classes, ratios."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from compiler.publish.delta.pieces import Piece, piece
from compiler.publish.delta.plan import Plan
from compiler.publish.delta.rans import Contexts
from runtimes.artifact.delta.format import CLASSES, RATIOS, WIDTH, Kind, stream_id
from runtimes.artifact.delta.tokens import split

Stream = tuple[bytes, Contexts | None]
Streams = dict[int, Stream]  # by id


def streams_of(base: bytes, new: bytes, plan: Plan) -> dict[int, Stream]:
    """Contents by stream id. A stream that would be empty is left out."""
    parts: dict[int, list[bytes]] = defaultdict(list)
    pieces: dict[Kind, list[Piece]] = defaultdict(list)
    for segment in plan:
        if segment.kind is Kind.LITERAL:
            parts[stream_id(Kind.LITERAL)].append(new[segment.result : segment.result + segment.size])
        elif segment.kind in WIDTH:
            made = piece(base, new, segment)
            pieces[segment.kind].append(made)
            parts[CLASSES].append(made.classes.tobytes())
            if made.steps is not None:
                parts[RATIOS].append(made.steps.astype("<i2").tobytes())
    found: dict[int, Stream] = {stream: (b"".join(data), None) for stream, data in parts.items()}
    for kind, of_kind in pieces.items():
        found |= _residual_streams(kind, of_kind)
    return found


def _residual_streams(kind: Kind, pieces: list[Piece]) -> dict[int, Stream]:
    residuals = np.concatenate([made.residuals for made in pieces])
    contexts = np.concatenate([made.contexts for made in pieces])
    if WIDTH[kind] == 1:
        return {stream_id(kind): (residuals.tobytes(), contexts)}
    tokens, bits, counts = split(residuals)
    wide = np.flatnonzero(counts)
    packed = _packed(bits.take(wide), counts.take(wide))
    found: dict[int, Stream] = {stream_id(kind): (tokens.tobytes(), contexts)}
    return found | ({stream_id(kind, 1): (packed, None)} if packed else {})


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
