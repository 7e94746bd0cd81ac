"""The channel index: which releases of a model exist, and which devices each is for.

One TUF target per channel and model, ``<channel>/<model>/index.json``, signed like every target. Devices decide alone, offline and
identically. Target paths beside it:

    <channel>/<model>/<release>/manifest.json                 the manifest; its relative paths start in this folder
    <channel>/<model>/<release>/<artifact>                    one file per artifact, vectors, documents
    <channel>/<model>/deltas/<base sha256>-<result sha256>.ewd   a delta, found by name; custom metadata repeats the digests
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from runtimes.artifact.digest import sha256_hex
from runtimes.artifact.manifest import (
    Digest,
    Document,
    Name,
    Number,
    RelativePath,
    _Open,
    parse_document,
    reason_of,
)
from runtimes.artifact.schema import Field
from runtimes.artifact.versions import at_least
from runtimes.errors import ManifestError

INDEX_SCHEMA: Final = "edgewright.index/1"
MAX_INDEX_BYTES = 1 << 20
SIGNED_FIELD: Final = (
    "x-edgewright-signed"  # in timestamp.json: seconds since 1970, a proof of time for devices without a clock
)


class Rollout(_Open):
    """Who gets a release, and when: ``percent`` of devices by hash, unless ``halted``; in the ``windows`` (windows.py), if any.

    ``min_agent`` is a dotted version; ``min_runtimes`` the same by runtime: a device runs it on one that is new enough.

    ``shadow_requests``: devices first run it unseen beside the active release for so many requests, and take it if at least
    ``shadow_agreement`` of the answers agree. ``revoked``: why nobody gets it any more, and devices that run it leave it.
    """

    percent: Number = Field(default=100.0, ge=0, le=100)
    halted: bool = False
    min_agent: str | None = None
    revoked: str | None = None
    shadow_requests: int | None = Field(default=None, ge=1)
    shadow_agreement: Number = Field(default=0.99, ge=0, le=1)
    min_runtimes: dict[str, str] = Field(default_factory=dict)
    windows: tuple[str, ...] = ()

    def includes(self, device_id: str, model: str, release: str) -> bool:
        """Whether the device is in the cohort: the first 8 bytes of SHA-256(device, model, release) as a share of 2**64.

        A larger percentage always contains the smaller one, and cohorts of different releases are independent.
        """
        if self.halted or self.revoked is not None:
            return False
        digest = sha256_hex(f"{device_id}\0{model}\0{release}".encode())
        return int(digest[:16], 16) < self.percent / 100 * 2**64

    def runs_on(self, agent: str, runtimes: Mapping[str, str]) -> tuple[str, ...]:
        """Which of a device's ``runtimes`` (version by name) may run the release under an ``agent`` of that version."""
        if not at_least(agent, self.min_agent):
            return ()
        return tuple(name for name, version in runtimes.items() if at_least(version, self.min_runtimes.get(name)))


class IndexEntry(_Open):
    release: Name
    sequence: int = Field(ge=1)
    manifest: RelativePath  # relative to <channel>/<model>/
    manifest_sha256: Digest
    rollout: Rollout = Rollout()


class ReleaseIndex(Document):
    """Releases of one model in one channel, oldest first by ``sequence``."""

    schema_: Literal["edgewright.index/1"] = Field(default=INDEX_SCHEMA, alias="schema")
    channel: Name
    model: Name
    releases: tuple[IndexEntry, ...] = ()

    def validate_whole(self) -> None:
        sequences = [entry.sequence for entry in self.releases]
        if sequences != sorted(set(sequences)):
            raise ValueError("sequences must increase")

    def newest_for(self, device_id: str) -> IndexEntry | None:
        """The release with the highest sequence whose rollout includes the device."""
        fitting = (e for e in reversed(self.releases) if e.rollout.includes(device_id, self.model, e.release))
        return next(fitting, None)


def index_path(channel: str, model: str) -> str:
    return f"{channel}/{model}/index.json"


def delta_path(channel: str, model: str, base_sha256: str, result_sha256: str) -> str:
    return f"{channel}/{model}/deltas/{base_sha256}-{result_sha256}.ewd"


def read_index(data: bytes) -> ReleaseIndex:
    """Parse and check an index. Raises ManifestError."""
    try:
        if len(data) > MAX_INDEX_BYTES:
            raise ValueError(f"{len(data)} bytes, at most {MAX_INDEX_BYTES} are read")
        return parse_document(ReleaseIndex, data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"The channel index cannot be used: {reason_of(error)}.", remedy="Publish the channel again."
        ) from error
