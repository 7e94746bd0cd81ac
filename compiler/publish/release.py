"""Publishing: build folder + keys -> a signed release with deltas; rollout and refresh of what is published.

Each function loads the repository verified, plans in memory, writes targets, then metadata, timestamp.json last.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Key, TargetFile, Targets

from compiler.errors import PublishError
from compiler.publish import provenance as documents
from compiler.publish.delta import encode_delta
from compiler.publish.draft import files_of, final_path, read_draft
from compiler.publish.repository import Lifetimes, Repository, commit, create, load, locked, now_seconds, put_target
from runtimes.artifact.archive import pack_folder
from runtimes.artifact.files import sha256_file
from runtimes.artifact.index import IndexEntry, ReleaseIndex, Rollout, delta_path, index_path, read_index
from runtimes.artifact.manifest import NAME_PATTERN, ArtifactRef, FileRef, Manifest, read_manifest
from runtimes.artifact.windows import parse_window

log = logging.getLogger(__name__)
CUSTOM_FIELD = "edgewright"


@dataclass(frozen=True, slots=True)
class Signing:
    """How to sign: folder of keys, their password, the time now (seconds since 1970; default SOURCE_DATE_EPOCH or the clock)."""

    keys: Path
    password: str | None = None
    now: int | None = None
    lifetimes: Lifetimes = field(default_factory=Lifetimes)

    @property
    def seconds(self) -> int:
        return now_seconds() if self.now is None else self.now


@dataclass(frozen=True, slots=True)
class PublishedFile:
    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PublishedDelta:
    """``size_bytes`` to send instead of ``full_bytes`` when coming from ``base_release``."""

    path: str
    base_release: str
    size_bytes: int
    full_bytes: int
    codec: str


@dataclass(frozen=True, slots=True)
class Published:
    """``expires``: when the timestamp's signature ends (ISO 8601); ``refresh`` before that."""

    channel: str
    model: str
    release: str
    sequence: int
    files: tuple[PublishedFile, ...]
    deltas: tuple[PublishedDelta, ...]
    expires: str


def init(
    repo: Path,
    signing: Signing,
    *,
    channels: tuple[str, ...] = ("stable",),
    root_keys: int = 1,
    root_threshold: int = 1,
) -> Repository:
    """Make an empty signed repository and the keys that are not there yet. Raises what ``repository.create`` raises."""
    return create(
        repo,
        signing.keys,
        channels=channels,
        root_keys=root_keys,
        root_threshold=root_threshold,
        password=signing.password,
        now=signing.seconds,
        lifetimes=signing.lifetimes,
    )


def publish(
    build: Path,
    repo: Path,
    signing: Signing,
    *,
    channel: str,
    release: str,
    rollout: Rollout | None = None,
    delta_from: int = 3,
    samples_per_hour: float | None = None,
) -> Published:
    """Publish the build's draft as ``release`` in ``channel``.

    Args:
        rollout: who gets it; everybody if None.
        delta_from: make deltas from the artifacts of this many releases before.
        samples_per_hour: as for ``read_draft``.

    Raises:
        PublishError: no draft, the release exists, no such channel, a key is missing, another publisher is at work.
        PublishTrustError: a file of the build or the repository is not what was signed or measured.
        ManifestError: the draft, or a manifest in the repository, is damaged.
        StorageError: the disk refuses. In every case devices see the repository as it was.
    """
    with locked(repo), tempfile.TemporaryDirectory(prefix="edgewright-publish-") as scratch:
        repository = load(repo)
        targets = repository.channel(channel)
        draft = read_draft(build, samples_per_hour=samples_per_hour)
        index = index_of(repository, targets, channel, draft.model)
        staging = Staging(repository, targets, Path(scratch))
        prepared = prepare(build, draft, index, staging, signing.seconds, release, rollout, delta_from)
        updated = index.model_copy(update={"releases": (*index.releases, prepared.entry)})
        staging.add_bytes(index_path(channel, draft.model), updated.to_bytes())
        commit_changes(repository, [channel], signing)
    return published(repository, channel, draft.model, prepared)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A release whose files lie in the repository, and that nothing signed speaks of yet."""

    entry: IndexEntry
    files: tuple[PublishedFile, ...]
    deltas: tuple[PublishedDelta, ...]


def prepare(
    build: Path,
    draft: Manifest,
    index: ReleaseIndex,
    staging: Staging,
    now: int,
    release: str,
    rollout: Rollout | None,
    delta_from: int,
) -> Prepared:
    """Bring a build's files into the repository as ``release``, after those of ``index``. Raises as ``publish``."""
    check_terms(rollout.model_dump() if rollout is not None else {})
    _check_release(index, release)
    prefix = f"{index.channel}/{draft.model}"
    manifest = _final(draft, build, release, _next_sequence(index), now, staging)
    files = [staging.add(f"{prefix}/{release}/{path}", source) for path, source in staging.sources(manifest)]
    deltas = list(_deltas(staging, index, manifest, prefix, delta_from))
    files.append(staging.add_bytes(f"{prefix}/{release}/manifest.json", manifest.to_bytes()))
    entry = IndexEntry(
        release=release,
        sequence=manifest.sequence,
        manifest=f"{release}/manifest.json",
        manifest_sha256=files[-1].sha256,
        rollout=rollout or Rollout(),
    )
    return Prepared(entry, tuple(files), tuple(deltas))


def published(repository: Repository, channel: str, model: str, done: Prepared) -> Published:
    """What is told of a release that was signed."""
    expires = repository.timestamp.signed.expires.isoformat().replace("+00:00", "Z")
    return Published(channel, model, done.entry.release, done.entry.sequence, done.files, done.deltas, expires)


def set_rollout(
    repo: Path,
    signing: Signing,
    *,
    channel: str,
    model: str,
    release: str,
    percent: float | None = None,
    halted: bool | None = None,
    terms: Mapping[str, Any] | None = None,
) -> Rollout:
    """Change who gets a published release, and when; None leaves a value as it is.

    Args:
        terms: other fields of ``Rollout``: windows, min_agent, min_runtimes.

    Raises:
        PublishError: no such channel, model or release, or terms that no device would understand; and what ``publish`` raises.
    """
    given = {"percent": percent, "halted": halted, **(terms or {})}
    changes = {k: v for k, v in given.items() if v is not None}
    check_terms(changes)
    with locked(repo), tempfile.TemporaryDirectory(prefix="edgewright-publish-") as scratch:
        repository = load(repo)
        targets = repository.channel(channel)
        index = index_of(repository, targets, channel, model)
        entry = entry_of(index, release)
        changed = entry.model_copy(update={"rollout": entry.rollout.model_copy(update=changes)})
        releases = tuple(changed if e is entry else e for e in index.releases)
        staging = Staging(repository, targets, Path(scratch))
        staging.add_bytes(index_path(channel, model), index.model_copy(update={"releases": releases}).to_bytes())
        commit_changes(repository, [channel], signing)
    return changed.rollout


def check_terms(terms: Mapping[str, Any]) -> None:
    """Refuse what no device would understand, before it is signed. Raises PublishError."""
    from runtimes.registry import RUNTIMES

    percent = terms.get("percent", 100)
    if not 0 <= percent <= 100:
        raise PublishError(f"{percent} is no percentage.", remedy="Give a number from 0 to 100.")
    runtimes = dict(terms.get("min_runtimes") or {})
    for name in runtimes:
        if name not in list(RUNTIMES):
            raise PublishError(f"No runtime is called {name!r}.", remedy=f"Choose one of {', '.join(RUNTIMES)}.")
    for version in [*runtimes.values(), terms.get("min_agent")]:
        if version is not None and not re.fullmatch(r"\d+(\.\d+)*", version):
            raise PublishError(f"{version!r} is no version.", remedy="Write it in numbers and dots, such as 1.20.")
    for window in terms.get("windows") or ():
        try:
            parse_window(window)
        except ValueError as error:
            raise PublishError(f"{error}.", remedy="Correct the window.") from error


def refresh(repo: Path, signing: Signing, *, everything: bool = False) -> datetime:
    """Sign snapshot and timestamp anew (``everything``: targets and channels too) and return the timestamp's new expiry."""
    with locked(repo):
        repository = load(repo)
        commit_changes(repository, ["targets", *repository.channels] if everything else [], signing)
    return repository.timestamp.signed.expires


def commit_changes(
    repository: Repository,
    changed: list[str],
    signing: Signing,
    also: Mapping[str, Mapping[str, Key]] | None = None,
) -> None:
    """Sign and write the changed channels as ``signing`` says; ``also`` and what it raises: see ``repository.commit``."""
    commit(
        repository,
        changed,
        signing.keys,
        password=signing.password,
        now=signing.seconds,
        lifetimes=signing.lifetimes,
        also=also,
    )
    if repository.timestamp.signed.is_expired():
        log.warning("the timestamp expired at its signing, because SOURCE_DATE_EPOCH is so old; devices will refuse it")


def index_of(repository: Repository, targets: Targets, channel: str, model: str) -> ReleaseIndex:
    """The releases of a model in a channel; empty where it has none. Raises PublishTrustError, ManifestError."""
    target = targets.targets.get(index_path(channel, model))
    if target is None:
        return ReleaseIndex(channel=channel, model=model, releases=())
    return read_index(repository.read_target(target))


def entry_of(index: ReleaseIndex, release: str) -> IndexEntry:
    """Raises PublishError if there is no such release."""
    entry = next((e for e in index.releases if e.release == release), None)
    if entry is None:
        known = ", ".join(e.release for e in index.releases) or "none"
        raise PublishError(
            f"{index.channel}/{index.model} has no release {release!r}; it has {known}.", remedy="Choose one of these."
        )
    return entry


def _check_release(index: ReleaseIndex, release: str) -> None:
    if any(entry.release == release for entry in index.releases):
        raise PublishError(
            f"{index.channel}/{index.model} has a release {release!r} already.",
            remedy="Choose a new name; a published release never changes.",
        )
    if release in ("deltas", "index.json") or not re.fullmatch(NAME_PATTERN, release):
        raise PublishError(f"A release cannot be called {release!r}.", remedy="Use letters, digits, dots, - and _.")


def _next_sequence(index: ReleaseIndex) -> int:
    return max((entry.sequence for entry in index.releases), default=0) + 1


class Staging:
    """Measures files, writes them to their final, digest-named places and lists them in the channel's targets."""

    def __init__(self, repository: Repository, targets: Targets, scratch: Path) -> None:
        self.repository = repository
        self.targets = targets
        self.scratch = scratch
        self._sources: dict[str, Path] = {}

    def scratch_file(self) -> Path:
        return self.scratch / f"{len(list(self.scratch.iterdir()))}"

    def source(self, path: str, file: Path) -> None:
        """Remember where the bytes of the manifest's ``path`` lie."""
        self._sources[path] = file

    def sources(self, manifest: Manifest) -> Iterator[tuple[str, Path]]:
        for path in sorted({ref.path for ref in files_of(manifest)}):
            yield path, self._sources[path]

    def file_of(self, path: str) -> Path:
        return self._sources[path]

    def add(self, path: str, file: Path, custom: dict[str, object] | None = None) -> PublishedFile:
        target = TargetFile.from_file(path, str(file), ["sha256"])
        if custom:
            target.unrecognized_fields["custom"] = {CUSTOM_FIELD: custom}
        put_target(self.repository, target, file)
        self.targets.targets[path] = target
        return PublishedFile(path, target.length, target.hashes["sha256"])

    def add_bytes(self, path: str, data: bytes) -> PublishedFile:
        file = self.scratch_file()
        file.write_bytes(data)
        return self.add(path, file)


def _final(draft: Manifest, build: Path, release: str, sequence: int, now: int, staging: Staging) -> Manifest:
    """The manifest as it will be signed: final paths and digests, sequence, date, documents."""
    artifacts = tuple(_final_artifact(draft, artifact, build, staging) for artifact in draft.artifacts)
    for ref in (draft.self_test.vectors, *draft.documents.values()):
        staging.source(ref.path, build / ref.path)
    changes = {
        "release": release,
        "sequence": sequence,
        "created": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "artifacts": artifacts,
    }
    manifest = draft.model_copy(update=changes)
    facts = documents.facts_of(draft)
    made = {
        "provenance": documents.provenance(manifest, facts),
        "sbom": documents.bill_of_materials(manifest, facts.tools),
    }
    refs = {name: _document(name, data, staging) for name, data in made.items() if name not in draft.documents}
    return manifest.model_copy(update={"documents": {**draft.documents, **refs}})


def _final_artifact(draft: Manifest, artifact: ArtifactRef, build: Path, staging: Staging) -> ArtifactRef:
    path = final_path(draft, artifact)
    if artifact.archive is None:
        staging.source(path, build / artifact.path)
        return artifact
    packed = staging.scratch_file()
    pack_folder(build / artifact.path, packed)
    staging.source(path, packed)
    changes = {"path": path, "size_bytes": packed.stat().st_size, "sha256": sha256_file(packed)}
    return artifact.model_copy(update=changes)


def _document(name: str, data: bytes, staging: Staging) -> FileRef:
    file = staging.scratch_file()
    file.write_bytes(data)
    path = f"documents/{name}.json"
    staging.source(path, file)
    return FileRef(path=path, size_bytes=len(data), sha256=sha256_file(file))


def _deltas(
    staging: Staging, index: ReleaseIndex, manifest: Manifest, prefix: str, count: int
) -> Iterator[PublishedDelta]:
    """Deltas from the artifacts of the last ``count`` releases; one that is not smaller than the full file is dropped."""
    for entry in reversed(index.releases[-count:] if count > 0 else ()):
        target = staging.targets.targets.get(f"{prefix}/{entry.manifest}")
        if target is None:
            continue
        older = read_manifest(staging.repository.read_target(target))
        for artifact in manifest.artifacts:
            base = next((a for a in older.artifacts if _replaces(artifact, a)), None)
            if base is not None:
                yield from _delta(staging, prefix, entry.release, base, artifact)


def _replaces(new: ArtifactRef, old: ArtifactRef) -> bool:
    """A device that runs ``old`` will run ``new``, and its bytes are another file's."""
    same_kind = (new.format, new.precision, new.archive) == (old.format, old.precision, old.archive)
    return same_kind and bool(set(new.profiles) & set(old.profiles)) and new.sha256 != old.sha256


def _delta(
    staging: Staging, prefix: str, base_release: str, base: ArtifactRef, artifact: ArtifactRef
) -> Iterator[PublishedDelta]:
    channel, model = prefix.split("/")
    path = delta_path(channel, model, base.sha256, artifact.sha256)
    target = staging.targets.targets.get(f"{prefix}/{base_release}/{base.path}")
    if target is None or path in staging.targets.targets:
        return
    staging.repository.verify_target(target)
    patch = staging.scratch_file()
    report = encode_delta(staging.repository.target_file(target), staging.file_of(artifact.path), patch)
    if report.size_bytes >= artifact.size_bytes:
        log.info("no delta for %s: %d bytes, the full file has %d", path, report.size_bytes, artifact.size_bytes)
        return
    delta: dict[str, object] = {
        "base_sha256": base.sha256,
        "base_bytes": base.size_bytes,
        "result_sha256": artifact.sha256,
        "result_bytes": artifact.size_bytes,
        "codec": report.codec,
        "memory_bytes": report.memory_bytes,
    }
    staging.add(path, patch, {"delta": delta})
    yield PublishedDelta(path, base_release, report.size_bytes, artifact.size_bytes, report.codec)
