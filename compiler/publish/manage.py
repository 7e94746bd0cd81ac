"""What happens to releases after they were published: revoked, pruned, compared."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import PublishError
from compiler.publish.release import Signing, Staging, commit_changes, entry_of, index_of
from compiler.publish.repository import Repository, load, locked
from compiler.publish.staged import staged_targets
from runtimes.artifact.files import storage_error
from runtimes.artifact.index import IndexEntry, ReleaseIndex, index_path, read_index
from runtimes.artifact.manifest import Manifest, read_manifest

_SHOWN = ("size_bytes", "sha256", "precision", "runtime", "profiles")
GRACE_HOURS = 24.0  # a device that read the old metadata may still be fetching


def revoke(repo: Path, signing: Signing, *, channel: str, model: str, release: str, reason: str) -> IndexEntry:
    """Withdraw a release for good: no device takes it any more, and those that run it leave it.

    Raises:
        PublishError: no such channel, model or release, or it is revoked already; StorageError. Nothing changed then.
    """
    if not reason.strip():
        raise PublishError("A revocation needs a reason.", remedy="Say why with --reason; devices log it.")
    with locked(repo), tempfile.TemporaryDirectory(prefix="edgewright-publish-") as scratch:
        repository = load(repo)
        targets = repository.channel(channel)
        index = index_of(repository, targets, channel, model)
        entry = entry_of(index, release)
        if entry.rollout.revoked is not None:
            raise PublishError(
                f"{release} was revoked already: {entry.rollout.revoked}.", remedy="Nothing is left to do."
            )
        # Agents that do not know of revocation understand halted.
        rollout = entry.rollout.model_copy(update={"halted": True, "revoked": reason[:500]})
        changed = entry.model_copy(update={"rollout": rollout})
        releases = tuple(changed if e is entry else e for e in index.releases)
        staging = Staging(repository, targets, Path(scratch))
        staging.add_bytes(index_path(channel, model), index.model_copy(update={"releases": releases}).to_bytes())
        commit_changes(repository, [channel], signing)
    return changed


@dataclass(frozen=True, slots=True)
class Pruned:
    """``releases`` that went, as channel/model/release; ``files`` and ``bytes`` that were (or would be) deleted."""

    releases: tuple[str, ...]
    files: int
    bytes: int


def prune(
    repo: Path, signing: Signing, *, keep: int, grace_hours: float = GRACE_HOURS, dry_run: bool = False
) -> Pruned:
    """Forget all but the newest ``keep`` releases of each model, then delete files that nothing signed speaks of any more.

    A file younger than ``grace_hours`` stays until a later run. Interrupted, it leaves a valid repository, and files that the next
    run deletes.

    Raises:
        PublishError, PublishTrustError, StorageError: see ``publish``.
    """
    if keep < 1:
        raise PublishError("At least one release must stay.", remedy="Give --keep 1 or more.")
    with locked(repo), tempfile.TemporaryDirectory(prefix="edgewright-publish-") as scratch:
        repository = load(repo)
        gone: list[str] = []
        changed = []
        for channel in sorted(repository.channels):
            dropped = _prune_channel(repository, channel, keep, Path(scratch), write=not dry_run)
            gone += dropped
            changed += [channel] if dropped else []
        if changed and not dry_run:
            commit_changes(repository, changed, signing)
        old = [path for path in _unreferenced(repository) if _age_hours(path) >= grace_hours]
        size = sum(path.stat().st_size for path in old)
        for path in [] if dry_run else old:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(path, error) from error
    return Pruned(tuple(gone), len(old), size)


def _prune_channel(repository: Repository, channel: str, keep: int, scratch: Path, *, write: bool) -> list[str]:
    targets = repository.channel(channel)
    gone: list[str] = []
    for path in sorted(p for p in targets.targets if p.endswith("/index.json")):
        index = read_index(repository.read_target(targets.targets[path]))
        old, kept = index.releases[:-keep], index.releases[-keep:]
        if not old:
            continue
        prefix = f"{channel}/{index.model}"
        gone += [f"{prefix}/{entry.release}" for entry in old]
        alive = {a.sha256 for e in kept for a in _manifest_of(repository, index, e).artifacts}
        for name in [n for n in targets.targets if n.startswith(f"{prefix}/")]:
            parts = name.split("/")
            of_old = parts[2] in {entry.release for entry in old}
            if of_old or (parts[2] == "deltas" and not _between(parts[3], alive)):
                del targets.targets[name]
        if write:
            updated = index.model_copy(update={"releases": kept})
            Staging(repository, targets, scratch).add_bytes(path, updated.to_bytes())
    return gone


def _between(delta: str, alive: set[str]) -> bool:
    """Whether a delta leads to a release that is kept. Its base may be gone from here and still run on a device."""
    return delta.removesuffix(".ewd").partition("-")[2] in alive


def _unreferenced(repository: Repository) -> Iterator[Path]:
    """Target files of no channel, and versions of metadata that neither the snapshot nor the chain of roots needs."""
    current = {
        repository.target_file(target).resolve()
        for channel in repository.channels.values()
        for target in channel.signed.targets.values()
    }
    current |= {repository.target_file(target).resolve() for target in staged_targets(repository.folder)}
    yield from (
        p for p in sorted((repository.folder / "targets").rglob("*")) if p.is_file() and p.resolve() not in current
    )
    meta = {name: info.version for name, info in repository.snapshot.signed.meta.items()}
    meta["snapshot.json"] = repository.timestamp.signed.snapshot_meta.version
    for path in sorted(repository.metadata.glob("[0-9]*.json")):
        version, _, name = path.name.partition(".")
        if name != "root.json" and int(version) < meta.get(name, 0):
            yield path


def _age_hours(path: Path) -> float:
    return (time.time() - path.stat().st_mtime) / 3600


def _manifest_of(repository: Repository, index: ReleaseIndex, entry: IndexEntry) -> Manifest:
    targets = repository.channel(index.channel)
    target = targets.targets[f"{index.channel}/{index.model}/{entry.manifest}"]
    return read_manifest(repository.read_target(target))


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two releases: ``what`` it is about, ``before`` and ``after`` (None: was not, or is no more there)."""

    what: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """``changes`` in the order inputs, outputs, artifacts, quality, tools; ``delta_bytes`` to send, per artifact of the newer."""

    channel: str
    model: str
    old: str
    new: str
    changes: tuple[Change, ...]
    delta_bytes: dict[str, int]


def diff(repo: Path, *, channel: str, model: str, old: str, new: str) -> Difference:
    """Explain what changed between two releases. Raises PublishError, PublishTrustError, ManifestError."""
    repository = load(repo)
    targets = repository.channel(channel)
    index = index_of(repository, targets, channel, model)
    before, after = (_manifest_of(repository, index, entry_of(index, name)) for name in (old, new))
    sizes = {a.sha256: (a.path, a.size_bytes) for a in after.artifacts}
    bases = {a.sha256 for a in before.artifacts}
    deltas = {}
    for path, target in targets.targets.items():
        base, _, result = path.rpartition("/")[2].removesuffix(".ewd").partition("-")
        if path.startswith(f"{channel}/{model}/deltas/") and base in bases and result in sizes:
            deltas[sizes[result][0]] = target.length
    return Difference(channel, model, old, new, tuple(_changes(before, after)), deltas)


def _changes(before: Manifest, after: Manifest) -> Iterator[Change]:
    for kind in ("inputs", "outputs"):
        old, new = ({port.name: _plain(port) for port in getattr(m, kind)} for m in (before, after))
        yield from _differences(kind[:-1], old, new)
    old, new = ({a.path: {f: _plain(a)[f] for f in _SHOWN} for a in m.artifacts} for m in (before, after))
    yield from _differences("artifact", old, new)
    old, new = ({a.path: a.quality for a in m.artifacts} for m in (before, after))
    for path in sorted(old.keys() & new.keys()):
        yield from _differences(f"quality of {path}:", old[path], new[path])
    tools = [(m.quality.get("provenance") or {}).get("tools") or {} for m in (before, after)]
    yield from _differences("tool", *tools)
    sources = [
        {"digest": ((m.quality.get("provenance") or {}).get("source") or {}).get("sha256")} for m in (before, after)
    ]
    yield from _differences("source", *sources)


def _plain(model: Any) -> dict[str, Any]:
    return dict(model.model_dump(mode="json"))


def _differences(what: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    for name in [*old, *(n for n in new if n not in old)]:
        if old.get(name) != new.get(name):
            yield Change(f"{what} {name}", old.get(name), new.get(name))


def told(change: Change) -> str:
    """A line for people. Of two tables only the fields that differ are shown."""
    before, after = change.before, change.after
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
        return f"{change.what}: " + ", ".join(f"{k} {_short(before.get(k))} -> {_short(after.get(k))}" for k in keys)
    if before is None or after is None:
        return f"{change.what}: {'new' if before is None else 'gone'}"
    return f"{change.what}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text[:8] if len(text) == 64 else text  # digests
