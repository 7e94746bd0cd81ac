"""A TUF repository of plain files, from the publisher's side: load it verified, change it, write it so that a crash harms nothing.

    REPO/metadata/N.root.json, N.targets.json, N.<channel>.json, N.snapshot.json, timestamp.json
    REPO/targets/<folder>/<sha256>.<name>

Names with versions and digests never change their content once timestamp.json leads to them, so ``timestamp.json``, replaced
last by one atomic rename, is the only switch (TUF 1.0.33, section 6.2, consistent snapshots).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from compiler.errors import OutputExists, PublishError, PublishTrustError
from compiler.publish.keys import ensure_signer, signers_for
from runtimes.artifact.files import CHUNK_BYTES, atomic_write, storage_error, sync_dir, write_atomic
from runtimes.artifact.manifest import NAME_PATTERN

TOP_ROLES = ("root", "targets", "snapshot", "timestamp")
S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

# TUF matches patterns folder by folder ("*" stops at "/"): index.json, deltas and files up to three folders below a release.
_PATTERNS = tuple("/".join("*" * depth) for depth in range(2, 7))


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long each role's signature holds. Devices refuse metadata past it, so timestamp and snapshot need ``refresh``."""

    root_days: int = 730
    targets_days: int = 365
    snapshot_days: int = 30
    timestamp_days: int = 30

    def of(self, role: str) -> timedelta:
        known = {"root": self.root_days, "snapshot": self.snapshot_days, "timestamp": self.timestamp_days}
        return timedelta(days=known.get(role, self.targets_days))


@dataclass(slots=True)
class Repository:
    """Verified metadata of ``folder``, changed in memory and written by ``commit``."""

    folder: Path
    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    channels: dict[str, Metadata[Targets]] = field(default_factory=dict)

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    def channel(self, name: str) -> Targets:
        """Raises PublishError if there is no such channel."""
        if name not in self.channels:
            raise PublishError(
                f"{self.folder} has no channel {name!r}; it has {', '.join(sorted(self.channels)) or 'none'}.",
                remedy="Choose one of these, or make the repository with this channel.",
            )
        return self.channels[name].signed

    def target_file(self, target: TargetFile) -> Path:
        """Where the bytes of ``target`` lie."""
        folder, _, name = target.path.rpartition("/")
        return self.folder / "targets" / folder / f"{target.hashes['sha256']}.{name}"

    def read_target(self, target: TargetFile) -> bytes:
        """The verified bytes of a small target. Raises PublishTrustError."""
        try:
            data = self.target_file(target).read_bytes()
            target.verify_length_and_hashes(data)
        except (OSError, RepositoryError) as error:
            raise _broken(self.folder, f"target {target.path}: {error}") from error
        return data

    def verify_target(self, target: TargetFile) -> None:
        """Raises PublishTrustError if the bytes of a target of any size are not the signed ones."""
        if not (self.target_file(target).exists() and _verifies(target, self.target_file(target))):
            raise _broken(self.folder, f"target {target.path} is missing or not the signed file")


def now_seconds() -> int:
    """Seconds since 1970: SOURCE_DATE_EPOCH if set, else the clock. Raises PublishError if the variable is no number."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return int(time.time())
    if not epoch.isdecimal():
        raise PublishError(f"SOURCE_DATE_EPOCH is {epoch!r}, no number.", remedy="Set it to seconds since 1970.")
    return int(epoch)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the repository's lock; the kernel releases it when the process dies. Raises PublishError if it is held."""
    if not (folder / "metadata").is_dir():
        raise PublishError(f"{folder} is no repository.", remedy="Make one with: edgewright release init.")
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise storage_error(folder / ".lock", error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PublishError(
                f"Another process is publishing to {folder}.", remedy="Wait for it, then try again."
            ) from error
        yield
    finally:
        os.close(descriptor)


def create(
    folder: Path,
    keys: Path,
    *,
    channels: tuple[str, ...],
    root_keys: int,
    root_threshold: int,
    password: str | None,
    now: int,
    lifetimes: Lifetimes,
) -> Repository:
    """Make an empty repository; key files that exist in ``keys`` are used, missing ones are made.

    Raises:
        OutputExists: ``folder`` exists and is not empty.
        PublishError: bad channel names or threshold, or a key that does not open.
        StorageError: the disk refuses; ``folder`` is as it was.
    """
    _check_creation(folder, channels, root_keys, root_threshold)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.parent.mkdir(parents=True, exist_ok=True)
        repository = _empty(temporary, keys, channels, root_keys, root_threshold, password, _expiry(now, lifetimes))
        (temporary / "metadata").mkdir(parents=True)
        (temporary / "targets").mkdir()
        _sign(repository.root, keys, "root", repository.root.signed, password)
        write_atomic(repository.metadata / "1.root.json", repository.root.to_bytes())
        _write(repository, ["targets", *channels], keys, password)
        temporary.replace(folder)  # fits on an empty folder too
        sync_dir(folder.parent)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    repository.folder = folder
    return repository


def _check_creation(folder: Path, channels: tuple[str, ...], root_keys: int, root_threshold: int) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExists(f"{folder} exists and is not empty.", remedy="Choose a new folder.")
    if not 1 <= root_threshold <= root_keys:
        raise PublishError(
            f"A threshold of {root_threshold} needs at least as many root keys, not {root_keys}.",
            remedy="Raise --root-keys or lower --root-threshold.",
        )
    if not channels or len(set(channels)) != len(channels) or not all(map(_is_channel_name, channels)):
        raise PublishError(
            f"These channels cannot be: {list(channels)}.",
            remedy=f"Use different names of letters, digits, - and _, none of {', '.join(TOP_ROLES)}.",
        )


def _is_channel_name(name: str) -> bool:
    """A plain name without dots (it is part of metadata file names) that shares no key file with a top-level role."""
    taken = re.fullmatch(rf"({'|'.join(TOP_ROLES)})(-\d+)?", name)
    return bool(re.fullmatch(NAME_PATTERN, name)) and "." not in name and not taken


def _expiry(now: int, lifetimes: Lifetimes) -> Mapping[str, datetime]:
    start = datetime.fromtimestamp(now, UTC)
    return {role: start + lifetimes.of(role) for role in TOP_ROLES}


def _empty(
    folder: Path,
    keys: Path,
    channels: tuple[str, ...],
    root_keys: int,
    threshold: int,
    password: str | None,
    expires: Mapping[str, datetime],
) -> Repository:
    root = Root(version=1, expires=expires["root"], consistent_snapshot=True)
    for number in range(1, root_keys + 1):
        root.add_key(ensure_signer(keys / f"root-{number}.pem", password).public_key, "root")
    root.roles["root"].threshold = threshold
    for role in TOP_ROLES[1:]:
        root.add_key(ensure_signer(keys / f"{role}.pem", password).public_key, role)
    public = {name: ensure_signer(keys / f"{name}.pem", password).public_key for name in channels}
    roles = {
        name: DelegatedRole(name, [key.keyid], 1, True, paths=[f"{name}/{pattern}" for pattern in _PATTERNS])
        for name, key in public.items()
    }
    delegations = Delegations({key.keyid: key for key in public.values()}, roles)
    targets = Targets(version=1, expires=expires["targets"], delegations=delegations)
    return Repository(
        folder,
        Metadata(root),
        Metadata(Timestamp(version=1, expires=expires["timestamp"])),
        Metadata(Snapshot(version=1, expires=expires["snapshot"])),
        Metadata(targets),
        {name: Metadata(Targets(version=1, expires=expires["targets"])) for name in channels},
    )


def load(folder: Path) -> Repository:
    """Read the repository and verify every signature down from the newest root, so that nothing forged is ever extended.

    Raises:
        PublishError: ``folder`` is no repository.
        PublishTrustError: a file is missing, damaged or not signed by the keys that the root names.
    """
    metadata = folder / "metadata"
    versions = sorted(int(path.name.split(".")[0]) for path in metadata.glob("[0-9]*.root.json"))
    if not versions:
        raise PublishError(f"{folder} is no repository.", remedy="Make one with: edgewright release init.")
    root = _read(metadata / f"{versions[-1]}.root.json", Root, None, "root")
    timestamp = _read(metadata / "timestamp.json", Timestamp, root, "timestamp")
    snapshot = _read(metadata / f"{timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot, root, "snapshot")
    meta = snapshot.signed.meta
    try:
        targets = _read(metadata / f"{meta['targets.json'].version}.targets.json", Targets, root, "targets")
        names = list((targets.signed.delegations.roles if targets.signed.delegations else None) or {})
        channels = {
            name: _read(metadata / f"{meta[f'{name}.json'].version}.{name}.json", Targets, targets, name)
            for name in names
        }
    except KeyError as error:
        raise _broken(folder, f"the snapshot does not list {error}") from error
    return Repository(folder, root, timestamp, snapshot, targets, channels)


def _read(path: Path, kind: type[S], delegator: Metadata[Root] | Metadata[Targets] | None, role: str) -> Metadata[S]:
    try:
        read: Metadata[S] = Metadata.from_bytes(path.read_bytes())
        if not isinstance(read.signed, kind):
            raise _broken(path, f"it is of type {read.signed.type}")
        parent = delegator.signed if delegator is not None else read.signed
        assert isinstance(parent, (Root, Targets))
        parent.verify_delegate(role, read.signed_bytes, read.signatures)
    except (OSError, DeserializationError, RepositoryError, ValueError) as error:
        raise _broken(path, str(error)) from error
    return read


def _broken(path: Path, reason: str) -> PublishTrustError:
    return PublishTrustError(
        f"The repository cannot be trusted: {path}: {reason}.",
        remedy="Restore it from a copy; do not publish on top of it.",
    )


def put_target(repository: Repository, target: TargetFile, source: Path) -> None:
    """Copy ``source`` to its place, named by its digest; a whole file that is there already is left.

    Raises:
        PublishTrustError: the source changed after it was measured.
        StorageError: the disk refuses.
    """
    destination = repository.target_file(target)
    if destination.exists() and _verifies(target, destination):
        return
    try:
        _make_folder(destination.parent)
        with source.open("rb") as reader, atomic_write(destination) as sink:
            shutil.copyfileobj(reader, sink, CHUNK_BYTES)
    except OSError as error:
        raise storage_error(destination, error) from error
    if not _verifies(target, destination):
        destination.unlink()
        raise _broken(source, "it changed while it was being published")


def _make_folder(path: Path) -> None:
    """Like mkdir with parents, and durable: a power cut must not take a folder that signed metadata speaks of."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_dir(path.parent)


def _verifies(target: TargetFile, path: Path) -> bool:
    try:
        with path.open("rb") as file:
            target.verify_length_and_hashes(file)
    except RepositoryError:
        return False
    return True


def commit(
    repository: Repository,
    changed: list[str],
    keys: Path,
    *,
    password: str | None,
    now: int,
    lifetimes: Lifetimes,
    also: Mapping[str, Mapping[str, Key]] | None = None,
) -> None:
    """Raise versions and expiry of ``changed`` roles, snapshot and timestamp, sign, and write; timestamp.json comes last.

    Args:
        also: by role, keys that sign beside those that the repository in memory trusts: the ones that a rotation retires.

    Raises:
        PublishError, PublishTrustError: a key is missing or not trusted; nothing is written.
        StorageError: the disk refuses; devices still see the previous state.
    """
    expires = _expiry(now, lifetimes)
    for role in [*changed, "snapshot", "timestamp"]:
        signed = _signed(repository, role).signed
        signed.version += 1
        signed.expires = expires.get(role, expires["targets"])
    _write(repository, changed, keys, password, also)


def _signed(repository: Repository, role: str) -> Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets]:
    if role == "timestamp":
        return repository.timestamp
    if role == "snapshot":
        return repository.snapshot
    return repository.targets if role == "targets" else repository.channels[role]


def _write(
    repository: Repository,
    changed: list[str],
    keys: Path,
    password: str | None,
    also: Mapping[str, Mapping[str, Key]] | None = None,
) -> None:
    """Sign everything first, so that a missing key stops before the first byte, then write in TUF's order."""
    files: list[tuple[Path, bytes]] = []
    for role in changed:
        metadata = _signed(repository, role)
        delegator = repository.root.signed if role == "targets" else repository.targets.signed
        data = _sign(metadata, keys, role, delegator, password, (also or {}).get(role))
        files.append((repository.metadata / f"{metadata.signed.version}.{role}.json", data))
        repository.snapshot.signed.meta[f"{role}.json"] = _meta(metadata.signed.version, data)
    data = _sign(repository.snapshot, keys, "snapshot", repository.root.signed, password, (also or {}).get("snapshot"))
    version = repository.snapshot.signed.version
    files.append((repository.metadata / f"{version}.snapshot.json", data))
    repository.timestamp.signed.snapshot_meta = _meta(version, data)
    data = _sign(
        repository.timestamp, keys, "timestamp", repository.root.signed, password, (also or {}).get("timestamp")
    )
    files.append((repository.metadata / "timestamp.json", data))
    for path, contents in files:
        write_atomic(path, contents)


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])


def _sign(
    metadata: Metadata[Any],
    keys: Path,
    role: str,
    delegator: Root | Targets,
    password: str | None,
    also: Mapping[str, Key] | None = None,
) -> bytes:
    delegation = delegator.get_delegated_role(role)
    trusted: dict[str, Key] = {keyid: delegator.get_key(keyid) for keyid in delegation.keyids}
    metadata.signatures.clear()
    for signer in signers_for(keys, role, trusted, delegation.threshold, password):
        metadata.sign(signer, append=True)
    for signer in signers_for(keys, role, also, 0, password) if also else ():
        if signer.public_key.keyid not in metadata.signatures:
            metadata.sign(signer, append=True)
    return metadata.to_bytes()
