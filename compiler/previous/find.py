"""Finds the artifacts of an earlier release, in a build's folder or in a repository."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import DataError
from compiler.publish.draft import DRAFT_NAME, read_draft


@dataclass(frozen=True, slots=True)
class PreviousArtifact:
    """One artifact of the earlier release. ``file``: its bytes; a packed folder where ``archive`` names the packing."""

    name: str
    format: str
    precision: str
    profiles: tuple[str, ...]
    file: Path
    archive: str | None


@dataclass(frozen=True, slots=True)
class PreviousRelease:
    """``title`` says where it was found."""

    title: str
    artifacts: tuple[PreviousArtifact, ...]

    @property
    def digest(self) -> str:
        """Changes whenever an artifact does."""
        digest = hashlib.sha256()
        for artifact in self.artifacts:
            digest.update(artifact.name.encode() + b"\0")
            if artifact.file.is_file():
                digest.update(hashlib.sha256(artifact.file.read_bytes()).digest())
        return digest.hexdigest()

    def of(self, fmt: str, precision: str) -> PreviousArtifact | None:
        return next((a for a in self.artifacts if (a.format, a.precision) == (fmt, precision)), None)


def find_previous(location: str, model: str) -> PreviousRelease:
    """The release at ``location``: a build's folder, or a repository, optionally with ``#channel`` or ``#channel/release``.

    Without a channel a repository must have one only; without a release its newest is taken.

    Raises:
        DataError: nothing of the kind is there, or nothing of this model.
        PublishError, PublishTrustError, ManifestError: the repository or a manifest is damaged.
    """
    path, _, fragment = location.partition("#")
    folder = Path(path)
    if (folder / DRAFT_NAME).is_file():
        return _from_build(folder)
    if (folder / "metadata").is_dir():
        return _from_repository(folder, fragment, model)
    raise DataError(
        f"{folder} holds no earlier release.",
        remedy="Give the folder of an earlier build, or of a repository (REPOSITORY#channel/release).",
    )


def _from_build(folder: Path) -> PreviousRelease:
    draft = read_draft(folder)
    return PreviousRelease(
        str(folder),
        tuple(
            PreviousArtifact(Path(a.path).name, a.format, a.precision, a.profiles, folder / a.path, None)
            for a in draft.artifacts
        ),
    )


def _from_repository(folder: Path, fragment: str, model: str) -> PreviousRelease:
    from compiler.publish.repository import load
    from runtimes.artifact.index import index_path, read_index
    from runtimes.artifact.manifest import read_manifest

    repository = load(folder)
    channel, _, release = fragment.partition("/")
    channel = channel or _only(folder, list(repository.channels))
    targets = repository.channel(channel).targets
    found = targets.get(index_path(channel, model))
    entries = read_index(repository.read_target(found)).releases if found is not None else ()
    entry = next((e for e in reversed(entries) if not release or e.release == release), None)
    if entry is None:
        raise DataError(
            f"{folder}#{channel} has no release {release or 'at all'} of {model!r}.",
            remedy=f"Its releases are {', '.join(e.release for e in entries) or 'none'}; --name gives the model's name.",
        )
    prefix = f"{channel}/{model}"
    try:
        manifest = read_manifest(repository.read_target(targets[f"{prefix}/{entry.manifest}"]))
        artifacts = []
        for a in manifest.artifacts:
            target = targets[f"{prefix}/{entry.release}/{a.path}"]
            repository.verify_target(target)
            artifacts.append(
                PreviousArtifact(
                    Path(a.path).name, a.format, a.precision, a.profiles, repository.target_file(target), a.archive
                )
            )
    except KeyError as error:
        raise DataError(
            f"{folder}#{prefix}/{entry.release} lacks {error}.", remedy="Choose another release, or publish it again."
        ) from error
    return PreviousRelease(f"{folder}#{prefix}/{entry.release}", tuple(artifacts))


def _only(folder: Path, channels: list[str]) -> str:
    if len(channels) == 1:
        return channels[0]
    raise DataError(
        f"{folder} has the channels {', '.join(sorted(channels))}.", remedy=f"Name one: --previous {folder}#CHANNEL."
    )
