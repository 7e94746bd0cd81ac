"""The draft that a build leaves for publishing: BUILD_DIR/manifest.draft.json, and the files it names, verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compiler.errors import PublishError, PublishTrustError
from runtimes.artifact.files import sha256_tree, size_tree
from runtimes.artifact.manifest import FileRef, Manifest, read_manifest
from runtimes.errors import ManifestError

DRAFT_NAME = "manifest.draft.json"
# Paths below a release that TUF's patterns cover (repository.py), and names that the layout needs for itself.
MAX_PATH_PARTS = 4
RESERVED = frozenset({"manifest.json"})


def read_draft(build: Path, *, samples_per_hour: float | None = None) -> Manifest:
    """Read the draft and check every file against its digest.

    Args:
        samples_per_hour: raw inputs that a device may send with its telemetry, once the manifest is signed; None: as drafted,
            which is none.

    Raises:
        PublishError: there is no draft (the build did not finish, or its gates failed), a file is missing, or a path does not
            fit the repository's layout.
        PublishTrustError: a file is not the one that the build measured.
        ManifestError: the draft does not follow the manifest's schema.
    """
    path = build / DRAFT_NAME
    try:
        draft = read_manifest(path.read_bytes())
    except OSError as error:
        raise PublishError(
            f"{build} cannot be published: {DRAFT_NAME} is not there; the build did not finish, or a gate said no.",
            remedy="Run edgewright build until its gates pass; its report names what failed.",
        ) from error
    except ManifestError as error:
        raise ManifestError(f"{path}: {error.message}", remedy="Build again.") from error
    sources: dict[str, str] = {}
    for ref in files_of(draft):
        _check(build, ref)
        final = final_path(draft, ref)
        # One file may serve several artifacts; two files may not land on one path.
        if sources.setdefault(final, ref.path) != ref.path or final in RESERVED or final.count("/") >= MAX_PATH_PARTS:
            raise PublishError(f"The draft's path {final!r} cannot be published.", remedy="Build again.")
    return draft if samples_per_hour is None else draft.model_copy(update={"samples_per_hour": samples_per_hour})


def files_of(manifest: Manifest) -> Iterator[FileRef]:
    """Everything that a manifest refers to: artifacts, self-test vectors, documents."""
    yield from manifest.artifacts
    yield manifest.self_test.vectors
    yield from manifest.documents.values()


def final_path(draft: Manifest, ref: FileRef) -> str:
    """A folder that travels as a zip gets the suffix; everything else keeps its path."""
    packed = any(ref.path == a.path and a.archive == "zip" for a in draft.artifacts)
    return f"{ref.path}.zip" if packed else ref.path


def _check(build: Path, ref: FileRef) -> None:
    path = build / ref.path
    if not path.resolve().is_relative_to(build.resolve()):
        raise PublishError(f"{path} is a link that leaves the build's folder.", remedy="Build again.")
    if not path.exists():
        raise PublishError(f"{path} is missing; the draft names it.", remedy="Build again.")
    if size_tree(path) != ref.size_bytes or sha256_tree(path) != ref.sha256:
        raise PublishTrustError(
            f"{path} has SHA-256 {sha256_tree(path)}, the build measured {ref.sha256}.",
            remedy="Find out who changed it, then build again.",
        )
