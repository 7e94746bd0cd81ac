"""One file that carries a release to devices without a network: current metadata and the targets that chosen profiles need.

A bundle is the repository in a zip file, under the same paths, so a device verifies it as it verifies a server. Entries are stored
(weights do not compress) in the order of their names, with one fixed date: the same repository gives the same bytes.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import OutputExists, PublishError
from compiler.publish.repository import Repository, load, locked
from runtimes.artifact.files import atomic_write
from runtimes.artifact.index import IndexEntry, ReleaseIndex, read_index
from runtimes.artifact.manifest import read_manifest
from runtimes.artifact.settings import settings_path

DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip can say


@dataclass(frozen=True, slots=True)
class Bundled:
    """What a bundle holds. ``expires``: devices with a clock take it until then (the earliest of its signatures)."""

    path: Path
    release: str
    artifacts: tuple[str, ...]
    size_bytes: int
    expires: str


def make_bundle(
    repo: Path,
    output: Path,
    *,
    channel: str,
    model: str,
    release: str | None = None,
    profiles: Collection[str] = (),
    force: bool = False,
) -> Bundled:
    """Write ``output`` from a verified view of ``repo``.

    Args:
        release: default: the newest that is not halted.
        profiles: only artifacts for one of these; default: all.

    Raises:
        PublishError: no such channel, model or release, or no artifact is left.
        PublishTrustError: the repository is not as signed.
        OutputExists: ``output`` is there and ``force`` is not set.
        StorageError: it cannot be written; nothing is left.
    """
    if output.exists() and not force:
        raise OutputExists(f"{output} exists.", remedy="Choose another file, or replace it with --force.")
    with locked(repo):
        repository = load(repo)
        index, entry = _choose(repository, channel, model, release)
        artifacts, targets = _targets(repository, index, entry, frozenset(profiles))
        files = {f"metadata/{path.name}": path for path in _metadata(repository)} | targets
        with atomic_write(output) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(files):
                info = zipfile.ZipInfo(name, DATE)
                info.external_attr = 0o644 << 16
                with archive.open(info, "w", force_zip64=True) as entry_file, files[name].open("rb") as source:
                    shutil.copyfileobj(source, entry_file, 1 << 20)
    roles = (repository.timestamp, repository.snapshot, repository.targets, repository.channels[channel])
    expires = min(role.signed.expires for role in roles).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Bundled(output, entry.release, artifacts, output.stat().st_size, expires)


def _choose(repository: Repository, channel: str, model: str, release: str | None) -> tuple[ReleaseIndex, IndexEntry]:
    targets = repository.channel(channel).targets
    target = targets.get(f"{channel}/{model}/index.json")
    if target is None:
        raise PublishError(f"Channel {channel} has no model {model!r}.", remedy="See edgewright release show.")
    index = read_index(repository.read_target(target))
    if release is None:
        offered = [entry for entry in index.releases if not entry.rollout.halted]
    else:
        offered = [entry for entry in index.releases if entry.release == release]
    if not offered:
        what = f"release {release!r}" if release else "release that is not halted"
        raise PublishError(f"{channel}/{model} has no {what}.", remedy="See edgewright release show.")
    return index, offered[-1]


def _targets(
    repository: Repository, index: ReleaseIndex, entry: IndexEntry, profiles: frozenset[str]
) -> tuple[tuple[str, ...], dict[str, Path]]:
    """The chosen artifacts' names, and entry name -> file of every target of the release that they need."""
    targets = repository.channel(index.channel).targets
    folder = f"{index.channel}/{index.model}"
    manifest_path = f"{folder}/{entry.manifest}"
    manifest = read_manifest(repository.read_target(targets[manifest_path]))
    chosen = [a for a in manifest.artifacts if not profiles or profiles & set(a.profiles)]
    if not chosen:
        raise PublishError(
            f"Release {entry.release} has no artifact for {', '.join(sorted(profiles))}.",
            remedy="Name profiles that the release was built for.",
        )
    base = manifest_path.rpartition("/")[0]
    left_out = {f"{base}/{a.path}" for a in manifest.artifacts} - {f"{base}/{a.path}" for a in chosen}
    wanted = [f"{folder}/index.json"]
    wanted += [path for path in (settings_path(index.channel),) if path in targets]
    wanted += [path for path in targets if path.startswith(f"{base}/") and path not in left_out]
    files = {}
    for path in wanted:
        repository.verify_target(targets[path])
        file = repository.target_file(targets[path])
        files[f"targets/{file.relative_to(repository.folder / 'targets').as_posix()}"] = file
    return tuple(a.path for a in chosen), files


def _metadata(repository: Repository) -> Iterator[Path]:
    """Every root, so that a device can walk from the one it has; of the other roles what the timestamp leads to."""
    folder = repository.metadata
    yield from sorted(folder.glob("*.root.json"))
    yield folder / "timestamp.json"
    yield folder / f"{repository.snapshot.signed.version}.snapshot.json"
    yield folder / f"{repository.targets.signed.version}.targets.json"
    for name, channel in repository.channels.items():
        yield folder / f"{channel.signed.version}.{name}.json"
