"""``encode_delta``: base + new -> the smallest patch found, proven by applying it."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import PublishError
from compiler.publish.delta.coders import THOROUGH_BYTES, coded_streams, estimate
from compiler.publish.delta.plan import Plan, candidate_plans
from compiler.publish.delta.streams import Streams, streams_of
from runtimes.artifact.delta import apply_delta, read_header
from runtimes.artifact.delta.codecs import CODECS, codec_by_id
from runtimes.artifact.delta.format import STREAM, Header, StreamRow, pack_header, pack_segments
from runtimes.artifact.files import write_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeltaReport:
    """``codec`` names the winning plan and the codecs of its streams; ``candidates`` the size of the patch of every plan
    that was coded (all of them for small files, else the one that was estimated to be smallest).

    ``full_bytes`` is the new file's size, ``memory_bytes`` what the device's decoders take at most.
    """

    size_bytes: int
    codec: str
    candidates: Mapping[str, int]
    full_bytes: int
    memory_bytes: int
    base_sha256: str
    result_sha256: str

    @property
    def ratio(self) -> float:
        """Patch as a share of the full file."""
        return self.size_bytes / self.full_bytes if self.full_bytes else 1.0


def encode_delta(base: Path, new: Path, patch: Path) -> DeltaReport:
    """Write the smallest patch that turns ``base`` into ``new``; deterministic, atomic, verified by applying it.

    Raises:
        PublishError: an input cannot be read.
        StorageError: the patch cannot be written.
    """
    old_data, new_data = _read(base), _read(new)
    patches = {
        name: _packed(old_data, new_data, plan, streams)
        for name, (plan, streams) in _promising(old_data, new_data, candidate_plans(old_data, new_data)).items()
    }
    winner = min(patches, key=lambda name: len(patches[name]))
    _prove(base, patches[winner], len(new_data))
    write_atomic(patch, patches[winner])
    header = read_header(patch)
    codecs = sorted({codec_by_id(row.codec).name for row in header.streams})
    log.info("delta %s: %d of %d bytes", winner, len(patches[winner]), len(new_data))
    return DeltaReport(
        size_bytes=len(patches[winner]),
        codec=f"{winner}/{'+'.join(codecs) or 'none'}",
        candidates={name: len(data) for name, data in patches.items()},
        full_bytes=len(new_data),
        memory_bytes=header.memory_bytes,
        base_sha256=header.base_sha256,
        result_sha256=header.result_sha256,
    )


def _promising(base: bytes, new: bytes, plans: dict[str, Plan]) -> dict[str, tuple[Plan, Streams]]:
    """Coding is slow, estimating is not: all plans of small files, of larger ones the plan with the smallest estimate."""
    made = {name: (plan, streams_of(base, new, plan)) for name, plan in plans.items()}
    if len(new) <= THOROUGH_BYTES:
        return made
    sizes = {name: _estimate(*found) for name, found in made.items()}
    log.debug("estimated sizes: %s", sizes)
    winner = min(sizes, key=lambda name: sizes[name])
    return {winner: made[winner]}


def _estimate(plan: Plan, streams: Streams) -> float:
    return len(pack_segments(plan)) + sum(STREAM.size + estimate(*stream) for stream in streams.values())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PublishError(
            f"Cannot read {path}: {error.strerror or error}.",
            remedy="Give two files; pack a folder first (a release stores .mlpackage folders as .zip).",
        ) from error


def _prove(base: Path, patch: bytes, result_bytes: int) -> None:
    """Decode with the device's own code; a difference would be our bug, found here and not in the field."""
    with tempfile.TemporaryDirectory(prefix="edgewright-delta-") as folder:
        candidate = Path(folder) / "patch"
        candidate.write_bytes(patch)
        apply_delta(base, candidate, Path(folder) / "result", max_result_bytes=result_bytes)


def pack(base: bytes, new: bytes, plan: Plan) -> bytes:
    """The patch that says ``plan``, with the smallest coding of every stream."""
    return _packed(base, new, plan, streams_of(base, new, plan))


def _packed(base: bytes, new: bytes, plan: Plan, streams: Streams) -> bytes:
    coded = coded_streams(streams)
    rows = [
        StreamRow(stream, CODECS.get(c.codec).wire_id, c.params, len(streams[stream][0]), len(c.data))
        for stream, c in coded.items()
    ]
    table = pack_segments(plan)
    header = Header(
        len(base),
        hashlib.sha256(base).hexdigest(),
        len(new),
        hashlib.sha256(new).hexdigest(),
        tuple(rows),
        len(plan),
        len(table),
    )
    return b"".join([pack_header(header), table, *(c.data for c in coded.values())])
