"""Carries a repository to where devices fetch it, in an order in which no reader ever sees a half-published state.

    targets, then the metadata that has versions in its names, then timestamp.json, then roots

Names with digests and versions never change their content, so what is there already is left, and a version that is there with
another content means two publishers: nothing of theirs is touched. timestamp.json is replaced only if it still is what was there at
the start. A new root comes after the timestamp: right after a rotation that one is signed by old and new keys (rotate.py), and
holds under either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, Timestamp
from tuf.api.serialization import DeserializationError

from compiler.errors import PublishTrustError
from compiler.publish.bucket import BucketDestination
from compiler.publish.client import verify
from compiler.publish.destinations import FolderDestination, RsyncDestination, conflict
from compiler.publish.repository import locked

TIMESTAMP = "metadata/timestamp.json"


@dataclass(frozen=True, slots=True)
class Pushed:
    """``files`` that had to be sent and ``removed`` ones; by rsync, which does not say, None."""

    destination: str
    offered: int
    files: int | None
    removed: int | None


class Destination(Protocol):
    """Somewhere that devices fetch from. Every method may raise PublishError and StorageError."""

    def session(self) -> AbstractContextManager[None]:
        """Entered for the whole push; keeps other publishers out where that is possible."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file that is there, or None."""
        ...

    def send(self, source: Path, files: list[str], *, replace: bool) -> int | None:
        """Bring ``files`` (relative to ``source``) over; how many had to be sent.

        Each appears atomically, and all are there when this returns: the next group relies on it. Without ``replace`` a file that
        is there with another content stays, and PublishTrustError is raised.
        """
        ...

    def switch(self, source: Path, name: str, seen: bytes | None) -> int:
        """Replace ``name`` if its content still is ``seen`` (None: not there); 0 if it is the same already.

        Raises PublishTrustError if somebody else changed it meanwhile.
        """
        ...

    def remove_others(self, source: Path) -> int | None:
        """Remove what ``source`` does not hold any more."""
        ...


def push(repo: Path, destination: str, *, delete: bool = False) -> Pushed:
    """Verify the repository as a device would, then carry it over.

    Args:
        destination: a folder, ``s3://BUCKET/PREFIX``, or what rsync takes (``user@host:/path``, ``host::module/path``, ``rsync://...``).
        delete: remove files that the repository does not hold any more, after everything else.

    Raises:
        PublishError: rsync or the bucket's client is missing or fails. StorageError: the disk refuses.
        PublishTrustError: the repository is not whole, or the destination is newer than it or comes from another publisher.
        In every case devices go on with a whole repository, the old one or the new one.
    """
    verify(repo)
    target = destination_of(destination)
    with locked(repo), target.session():
        seen = target.read(TIMESTAMP)
        if seen is not None:
            _check_lineage(repo, destination, seen)
        targets, metadata, roots = _groups(repo)
        sent = [target.send(repo, targets, replace=True), target.send(repo, metadata, replace=False)]
        sent += [target.switch(repo, TIMESTAMP, seen), target.send(repo, roots, replace=False)]
        removed = target.remove_others(repo) if delete else 0
    known = [count for count in sent if count is not None]
    offered = len(targets) + len(metadata) + 1 + len(roots)
    return Pushed(destination, offered, sum(known) if len(known) == len(sent) else None, removed)


def destination_of(text: str) -> Destination:
    """A folder, unless the text has the form of a bucket's or rsync's address."""
    if text.startswith("s3://"):
        return BucketDestination(text)
    first = text.partition("/")[0]
    return RsyncDestination(text) if ":" in first or text.startswith("rsync://") else FolderDestination(Path(text))


def _groups(repo: Path) -> tuple[list[str], list[str], list[str]]:
    """Targets; metadata with versions; roots, oldest first."""

    def named(folder: str) -> Iterator[str]:
        files = sorted((repo / folder).rglob("*"))
        return (p.relative_to(repo).as_posix() for p in files if p.is_file() and not p.name.startswith("."))

    metadata = [name for name in named("metadata") if name.endswith(".json") and name != TIMESTAMP]
    roots = [name for name in metadata if name.endswith(".root.json")]
    others = [name for name in metadata if name not in roots]
    return list(named("targets")), others, sorted(roots, key=lambda name: int(name.rpartition("/")[2].split(".")[0]))


def _check_lineage(repo: Path, destination: str, seen: bytes) -> None:
    """What is there must be what this repository is now, or what it once was."""
    ours = Metadata[Timestamp].from_file(str(repo / TIMESTAMP)).signed
    try:
        theirs = Metadata[Timestamp].from_bytes(seen).signed
        if not isinstance(theirs, Timestamp):
            raise ValueError("it is of another type")
    except (DeserializationError, ValueError) as error:
        raise PublishTrustError(
            f"{destination} holds a timestamp.json that is none: {error}.",
            remedy="Push to another place, or empty this one.",
        ) from error
    if theirs.version > ours.version:
        raise PublishTrustError(
            f"{destination} is newer (timestamp {theirs.version}) than {repo} ({ours.version}).",
            remedy="Another publisher pushed there, or this repository was restored from an old copy: bring them together first.",
        )
    then = theirs.snapshot_meta
    kept = repo / "metadata" / f"{then.version}.snapshot.json"
    if theirs.version == ours.version and seen != (repo / TIMESTAMP).read_bytes():
        raise conflict(destination, TIMESTAMP)
    if kept.exists():  # an older one may have been pruned here
        try:
            then.verify_length_and_hashes(kept.read_bytes())
        except LengthOrHashMismatchError as error:
            raise conflict(destination, f"metadata/{kept.name}") from error
