"""Releases that are in a repository but not signed: whoever builds needs no keys, and whoever signs needs no builds.

    REPO/staged/<channel>.<model>.<sequence>.json   the index entry and the targets that signing will list

Target files have their final, digest-named places; nothing signed speaks of them, so no device sees them. ``publish_staged`` signs
all that is staged in one step: several models appear at the same moment.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile

from compiler.errors import PublishError, PublishTrustError
from compiler.publish.draft import read_draft
from compiler.publish.release import (
    Prepared,
    Published,
    PublishedFile,
    Signing,
    Staging,
    commit_changes,
    index_of,
    prepare,
    published,
)
from compiler.publish.repository import Repository, load, locked, now_seconds
from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.files import storage_error, write_atomic
from runtimes.artifact.index import IndexEntry, Rollout, index_path

SCHEMA = "edgewright.staged/1"


@dataclass(frozen=True, slots=True)
class Staged:
    """One record: a release of ``model`` that waits for a signature, with its targets."""

    path: Path
    channel: str
    model: str
    entry: IndexEntry
    targets: dict[str, TargetFile]


def staged(repo: Path) -> list[Staged]:
    """All records, in the order in which they were added to each model. Raises PublishTrustError for a damaged one."""
    return sorted(_records(repo), key=lambda record: (record.channel, record.model, record.entry.sequence))


def _records(repo: Path) -> Iterator[Staged]:
    for path in (repo / "staged").glob("*.json"):
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            if document["schema"] != SCHEMA:
                raise ValueError(f"its schema is {document['schema']}")
            targets = {name: TargetFile.from_dict(one, name) for name, one in document["targets"].items()}
            entry = IndexEntry.model_validate(document["entry"])
            yield Staged(path, str(document["channel"]), str(document["model"]), entry, targets)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PublishTrustError(
                f"{path} is damaged: {error}.", remedy="Remove it, and add the release again."
            ) from error


def staged_targets(repo: Path) -> Iterator[TargetFile]:
    """What ``prune`` must leave."""
    for record in staged(repo):
        yield from record.targets.values()


def add(
    build: Path,
    repo: Path,
    *,
    channel: str,
    release: str,
    rollout: Rollout | None = None,
    delta_from: int = 3,
    samples_per_hour: float | None = None,
    now: int | None = None,
) -> Published:
    """Bring a build in as ``release``, unsigned. Raises as ``publish``; ``expires`` of the answer is the repository's."""
    with locked(repo), tempfile.TemporaryDirectory(prefix="edgewright-publish-") as scratch:
        repository = load(repo)
        targets = repository.channel(channel)
        draft = read_draft(build, samples_per_hour=samples_per_hour)
        index = index_of(repository, targets, channel, draft.model)
        waiting = tuple(r.entry for r in staged(repo) if (r.channel, r.model) == (channel, draft.model))
        after = index.model_copy(update={"releases": (*index.releases, *waiting)})
        known = set(targets.targets)
        staging = Staging(repository, targets, Path(scratch))
        seconds = now_seconds() if now is None else now
        prepared = prepare(build, draft, after, staging, seconds, release, rollout, delta_from)
        new = {name: target.to_dict() for name, target in targets.targets.items() if name not in known}
        document = {"schema": SCHEMA, "channel": channel, "model": draft.model, "targets": new}
        document["entry"] = prepared.entry.model_dump(mode="json", exclude_unset=True)
        path = repo / "staged" / f"{channel}.{draft.model}.{prepared.entry.sequence}.json"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error
        write_atomic(path, canonical_json(document))
    return published(repository, channel, draft.model, prepared)


def publish_staged(repo: Path, signing: Signing) -> list[Published]:
    """Sign everything that was added.

    Raises:
        PublishError: nothing is staged, or another release was published after it was added.
        PublishTrustError: a record or a file is not what was added; and what ``publish`` raises. Nothing is signed then.
    """
    with locked(repo), tempfile.TemporaryDirectory(prefix="edgewright-publish-") as scratch:
        repository = load(repo)
        records = staged(repo)
        if not records:
            raise PublishError(f"Nothing was added to {repo}.", remedy="Use edgewright release add, or name a build.")
        fresh = [record for record in records if _take(repository, record, Path(scratch))]
        if fresh:
            commit_changes(repository, sorted({record.channel for record in fresh}), signing)
        for record in records:
            record.path.unlink(missing_ok=True)
    return [published(repository, r.channel, r.model, Prepared(r.entry, _files(r), ())) for r in fresh]


def _take(repository: Repository, record: Staged, scratch: Path) -> bool:
    """List a release's targets and put it in its index; False if that was signed, and the record outlived a crash."""
    targets = repository.channel(record.channel)
    index = index_of(repository, targets, record.channel, record.model)
    if any(entry.manifest_sha256 == record.entry.manifest_sha256 for entry in index.releases):
        return False
    if index.releases and record.entry.sequence <= index.releases[-1].sequence:
        raise PublishError(
            f"{record.channel}/{record.model} {record.entry.release} was added as sequence {record.entry.sequence}, and "
            f"{index.releases[-1].release} was published since.",
            remedy=f"Remove {record.path}, and add the release again.",
        )
    for name, target in record.targets.items():
        repository.verify_target(target)
        targets.targets[name] = target
    updated = index.model_copy(update={"releases": (*index.releases, record.entry)})
    Staging(repository, targets, scratch).add_bytes(index_path(record.channel, record.model), updated.to_bytes())
    return True


def _files(record: Staged) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(t.path, t.length, t.hashes["sha256"]) for t in record.targets.values())
