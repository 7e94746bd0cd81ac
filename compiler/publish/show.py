"""What a repository holds, as plain values for people and for ``--json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.publish.client import expiries
from compiler.publish.configure import settings_of
from compiler.publish.repository import Repository, load
from runtimes.artifact.index import IndexEntry, ReleaseIndex, read_index
from runtimes.artifact.manifest import read_manifest


@dataclass(frozen=True, slots=True)
class ArtifactSummary:
    path: str
    format: str
    precision: str
    profiles: tuple[str, ...]
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DeltaSummary:
    base_sha256: str
    result_sha256: str
    size_bytes: int
    full_bytes: int


@dataclass(frozen=True, slots=True)
class ReleaseSummary:
    """``deltas`` are those that lead to one of this release's artifacts."""

    channel: str
    model: str
    release: str
    sequence: int
    created: str
    percent: float
    halted: bool
    revoked: str | None
    artifacts: tuple[ArtifactSummary, ...]
    deltas: tuple[DeltaSummary, ...]


@dataclass(frozen=True, slots=True)
class RepositorySummary:
    """``expires``: end of each role's signature, ISO 8601. ``settings`` of agents, by channel, where there are any."""

    root_version: int
    root_threshold: int
    expires: dict[str, str]
    releases: tuple[ReleaseSummary, ...]
    settings: dict[str, dict[str, Any]]


def show(repo: Path) -> RepositorySummary:
    """Summarise the repository, signatures verified. Raises PublishError, PublishTrustError, ManifestError."""
    repository = load(repo)
    root = repository.root.signed
    return RepositorySummary(
        root.version,
        root.roles["root"].threshold,
        expiries(repository),
        tuple(
            _release(repository, index, entry)
            for name in sorted(repository.channels)
            for index in _indexes(repository, name)
            for entry in index.releases
        ),
        {name: found for name in sorted(repository.channels) if (found := settings_of(repository, name))},
    )


def _indexes(repository: Repository, channel: str) -> list[ReleaseIndex]:
    targets = repository.channel(channel).targets
    paths = sorted(path for path in targets if path.endswith("/index.json"))
    return [read_index(repository.read_target(targets[path])) for path in paths]


def _release(repository: Repository, index: ReleaseIndex, entry: IndexEntry) -> ReleaseSummary:
    targets = repository.channel(index.channel).targets
    manifest = read_manifest(repository.read_target(targets[f"{index.channel}/{index.model}/{entry.manifest}"]))
    artifacts = tuple(
        ArtifactSummary(a.path, a.format, a.precision, a.profiles, a.size_bytes, a.sha256) for a in manifest.artifacts
    )
    sizes = {a.sha256: a.size_bytes for a in artifacts}
    deltas = []
    for path, target in sorted(targets.items()):
        base, _, result = path.rpartition("/")[2].removesuffix(".ewd").partition("-")
        if path.startswith(f"{index.channel}/{index.model}/deltas/") and result in sizes:
            deltas.append(DeltaSummary(base, result, target.length, sizes[result]))
    return ReleaseSummary(
        index.channel,
        index.model,
        entry.release,
        entry.sequence,
        manifest.created,
        entry.rollout.percent,
        entry.rollout.halted,
        entry.rollout.revoked,
        artifacts,
        tuple(deltas),
    )
