"""Carries a repository to where devices fetch it, in an order in which no reader ever sees a half-published state.

    targets, then the metadata that has versions in its names, then timestamp.json, then roots

Names with digests and versions never change their content, so what is there already is left. A new root comes after the timestamp:
right after a rotation that one is signed by old and new keys (rotate.py), and holds under either root.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from compiler.errors import PublishError
from compiler.publish.client import verify
from compiler.publish.repository import locked
from runtimes.artifact.files import CHUNK_BYTES, atomic_write, sha256_file, storage_error

RSYNC_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Pushed:
    """``files`` that had to be sent and ``removed`` ones; by rsync, which does not say, None."""

    destination: str
    offered: int
    files: int | None
    removed: int | None


class Destination(Protocol):
    """Somewhere that devices fetch from.

    ``send`` must replace each file atomically and return only when all of them are there: the next group relies on it.
    """

    def send(self, source: Path, files: Sequence[str]) -> int | None:
        """Bring ``files`` (relative to ``source``) over; how many had to be sent. Raises PublishError, StorageError."""
        ...

    def remove_others(self, source: Path) -> int | None:
        """Remove what ``source`` does not hold any more."""
        ...


def push(repo: Path, destination: str, *, delete: bool = False) -> Pushed:
    """Verify the repository as a device would, then carry it over.

    Args:
        destination: a folder, or what rsync takes (``user@host:/path``, ``host::module/path``, ``rsync://...``).
        delete: remove files that the repository does not hold any more, after everything else.

    Raises:
        PublishError: rsync is missing or fails. PublishTrustError: the repository is not whole. StorageError: the disk refuses.
        In every case devices go on with a whole repository, the old one or the new one.
    """
    verify(repo)
    target = destination_of(destination)
    with locked(repo):
        groups = list(_groups(repo))
        sent = [target.send(repo, group) for group in groups if group]
        removed = target.remove_others(repo) if delete else 0
    known = [count for count in sent if count is not None]
    return Pushed(destination, sum(map(len, groups)), sum(known) if len(known) == len(sent) else None, removed)


def destination_of(text: str) -> Destination:
    """A folder, unless the text has rsync's form for another machine."""
    first = text.partition("/")[0]
    return RsyncDestination(text) if ":" in first or text.startswith("rsync://") else FolderDestination(Path(text))


def _groups(repo: Path) -> Iterator[list[str]]:
    yield [p.relative_to(repo).as_posix() for p in sorted((repo / "targets").rglob("*")) if p.is_file()]
    metadata = sorted(p.name for p in (repo / "metadata").glob("*.json"))
    roots = [name for name in metadata if name.endswith(".root.json")]
    yield [f"metadata/{name}" for name in metadata if name not in roots and name != "timestamp.json"]
    yield ["metadata/timestamp.json"]
    yield [f"metadata/{name}" for name in sorted(roots, key=lambda name: int(name.split(".")[0]))]


class FolderDestination:
    """A folder on this machine: a mounted share, a web server's root, a stick."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def send(self, source: Path, files: Sequence[str]) -> int:
        sent = 0
        for name in files:
            here, there = source / name, self._folder / name
            if (
                there.is_file()
                and there.stat().st_size == here.stat().st_size
                and sha256_file(there) == sha256_file(here)
            ):
                continue
            try:
                there.parent.mkdir(parents=True, exist_ok=True)
                with here.open("rb") as reader, atomic_write(there) as sink:
                    shutil.copyfileobj(reader, sink, CHUNK_BYTES)
            except OSError as error:
                raise storage_error(there, error) from error
            sent += 1
        return sent

    def remove_others(self, source: Path) -> int:
        gone = [
            path
            for folder in ("targets", "metadata")
            for path in sorted((self._folder / folder).rglob("*"))
            if path.is_file() and not (source / path.relative_to(self._folder)).exists()
        ]
        for path in gone:
            path.unlink()
        return len(gone)


class RsyncDestination:
    """Another machine, by rsync over ssh or to its daemon. rsync puts each file in place by a rename."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        if shutil.which("rsync") is None:
            raise PublishError("rsync is not installed.", remedy="Install Debian's package rsync, or push to a folder.")

    def send(self, source: Path, files: Sequence[str]) -> None:
        self._run(["--files-from=-", "--checksum", f"{source}/"], "\n".join(files))

    def remove_others(self, source: Path) -> None:
        # --existing and --ignore-existing together send nothing: what is left of --delete.
        for folder in ("targets", "metadata"):
            self._run(["-r", "--delete", "--existing", "--ignore-existing", f"{source}/{folder}/"], "", f"/{folder}/")

    def _run(self, arguments: Sequence[str], names: str, below: str = "/") -> None:
        command = ["rsync", "--times", "--fsync", *arguments, f"{self._address}{below}"]
        try:
            done = subprocess.run(command, input=names, capture_output=True, text=True, timeout=RSYNC_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise PublishError(
                f"rsync to {self._address} did not end within {RSYNC_TIMEOUT_S} s.", remedy="Run it again: it goes on."
            ) from error
        if done.returncode != 0:
            said = " ".join(done.stderr.split())[-300:]
            raise PublishError(
                f"rsync to {self._address} failed: {said}",
                remedy="Check the address and ssh; run it again: it goes on.",
            )
