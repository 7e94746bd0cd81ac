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

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from compiler.errors import OutputExists, PublishError, PublishTrustError
from compiler.publish.keys import ensure_public, held_keys, signers_for
from runtimes.artifact.files import CHUNK_BYTES, atomic_write, storage_error, sync_dir, write_atomic
from runtimes.artifact.index import SIGNED_FIELD
from runtimes.artifact.manifest import NAME_PATTERN

TOP_ROLES = ("root", "targets", "snapshot", "timestamp")
S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

# TUF matches patterns folder by folder ("*" stops at "/"): index.json, deltas and files up to three folders below a release.
_PATTERNS = tuple("/".join("*" * depth) for depth in range(2, 7))


DAYS_FIELD = "x-edgewright-days"
MAX_DAYS = 3650


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long each role's signature holds. Devices refuse metadata past it, so timestamp and snapshot need ``refresh``.

    ``chosen``: days by role; they are written into that role's metadata and hold for every later signing.
    """

    root_days: int = 730
    targets_days: int = 365
    snapshot_days: int = 30
    timestamp_days: int = 30
    chosen: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role, days in self.chosen.items():
            if not 1 <= days <= MAX_DAYS:
                raise PublishError(f"{role}={days} is no lifetime.", remedy=f"Give 1 to {MAX_DAYS} days.")

    def stamp(self, role: str, signed: Signed, now: int) -> None:
        """Set the expiry of ``signed``, which is about to be signed at ``now`` (seconds since 1970)."""
        if role in self.chosen:
            signed.unrecognized_fields[DAYS_FIELD] = self.chosen[role]
        known = {"root": self.root_days, "snapshot": self.snapshot_days, "timestamp": self.timestamp_days}
        kept = signed.unrecognized_fields.get(DAYS_FIELD)
        days = kept if isinstance(kept, int) and 1 <= kept <= MAX_DAYS else known.get(role, self.targets_days)
        signed.expires = datetime.fromtimestamp(now, UTC) + timedelta(days=days)
        if role == "timestamp":
            signed.unrecognized_fields[SIGNED_FIELD] = now


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
    """Make an empty repository; keys that exist in ``keys`` are used, missing ones are made.

    Where ``keys`` holds fewer root keys that can sign than ``root_threshold`` (the others' holders sign elsewhere), 1.root.json
    lacks signatures, and nobody accepts the repository before ``sign_root`` has added them (rotate.py).

    Raises:
        OutputExists: ``folder`` exists and is not empty.
        PublishError: bad channel names or threshold, or a key that does not open.
        StorageError: the disk refuses; ``folder`` is as it was.
    """
    _check_creation(folder, channels)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.parent.mkdir(parents=True, exist_ok=True)
        repository = _empty(temporary, keys, channels, root_keys, root_threshold, password)
        for role in (*TOP_ROLES, *channels):
            lifetimes.stamp(role, _signed(repository, role).signed, now)
        (temporary / "metadata").mkdir(parents=True)
        (temporary / "targets").mkdir()
        _sign(repository.root, keys, "root", repository.root.signed, password, least=0)
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


def _check_creation(folder: Path, channels: tuple[str, ...]) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExists(f"{folder} exists and is not empty.", remedy="Choose a new folder.")
    if not channels or len(set(channels)) != len(channels) or not all(map(_is_channel_name, channels)):
        raise PublishError(
            f"These channels cannot be: {list(channels)}.",
            remedy=f"Use different names of letters, digits, - and _, none of {', '.join(TOP_ROLES)}.",
        )


def _is_channel_name(name: str) -> bool:
    """A plain name without dots (it is part of metadata file names) that shares no key file with a top-level role."""
    taken = re.fullmatch(rf"({'|'.join(TOP_ROLES)})(-\d+)?", name)
    return bool(re.fullmatch(NAME_PATTERN, name)) and "." not in name and not taken


def check_threshold(threshold: int, keys: int) -> None:
    """Raises PublishError."""
    if not 1 <= threshold <= keys:
        raise PublishError(
            f"A threshold of {threshold} needs at least as many root keys, not {keys}.",
            remedy="Raise --root-keys or lower the threshold.",
        )


def _empty(
    folder: Path, keys: Path, channels: tuple[str, ...], root_keys: int, threshold: int, password: str | None
) -> Repository:
    root = Root(version=1, consistent_snapshot=True)
    # A root threshold is checked before the first key file is made.
    check_threshold(threshold, max(root_keys, len(held_keys(keys, "root"))))
    for key in ensure_public(keys, "root", root_keys, password):
        root.add_key(key, "root")
    root.roles["root"].threshold = threshold
    for role in TOP_ROLES[1:]:
        for key in ensure_public(keys, role, 1, password):
            root.add_key(key, role)
    public = {name: ensure_public(keys, name, 1, password) for name in channels}
    roles = {
        name: DelegatedRole(
            name, [k.keyid for k in mine], 1, True, paths=[f"{name}/{pattern}" for pattern in _PATTERNS]
        )
        for name, mine in public.items()
    }
    delegations = Delegations({key.keyid: key for mine in public.values() for key in mine}, roles)
    return Repository(
        folder,
        Metadata(root),
        Metadata(Timestamp(version=1)),
        Metadata(Snapshot(version=1)),
        Metadata(Targets(version=1, delegations=delegations)),
        {name: Metadata(Targets(version=1)) for name in channels},
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


def trusted_keys(repository: Repository) -> dict[str, list[str]]:
    """What the repository trusts each key for: key id -> roles."""
    root = repository.root.signed
    roles = {role: root.roles[role].keyids for role in TOP_ROLES}
    roles |= {name: repository.targets.signed.get_delegated_role(name).keyids for name in repository.channels}
    found: dict[str, list[str]] = {}
    for role, keyids in roles.items():
        for keyid in keyids:
            found.setdefault(keyid, []).append(role)
    return found


def _read(path: Path, kind: type[S], delegator: Metadata[Root] | Metadata[Targets] | None, role: str) -> Metadata[S]:
    try:
        read: Metadata[S] = Metadata.from_bytes(path.read_bytes())
        if not isinstance(read.signed, kind):
            raise _broken(path, f"it is of type {read.signed.type}")
        parent = delegator.signed if delegator is not None else read.signed
        assert isinstance(parent, (Root, Targets))
        parent.verify_delegate(role, read.signed_bytes, read.signatures)
    except UnsignedMetadataError as error:
        if role == "root":
            raise PublishTrustError(
                f"{path} is not signed by as many root keys as it asks for: {error}.",
                remedy=f"Let the holders of root keys sign it: edgewright release sign {path} --keys FOLDER.",
            ) from error
        raise _broken(path, str(error)) from error
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
    for role in [*changed, "snapshot", "timestamp"]:
        signed = _signed(repository, role).signed
        signed.version += 1
        lifetimes.stamp(role, signed, now)
    _write(repository, changed, keys, password, also)


def _signed(repository: Repository, role: str) -> Metadata[Any]:
    if role == "root":
        return repository.root
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
    least: int | None = None,
) -> bytes:
    """Sign with every key of ``role`` that the folder holds, ``least`` of them (default: the threshold), and with ``also``."""
    delegation = delegator.get_delegated_role(role)
    trusted: dict[str, Key] = {keyid: delegator.get_key(keyid) for keyid in delegation.keyids}
    metadata.signatures.clear()
    if least is None or held_keys(keys, role):
        add_signatures(
            metadata, keys, role, trusted, delegation.threshold if least is None else least, password=password
        )
    if also:
        add_signatures(metadata, keys, role, also, 0, password=password)
    return metadata.to_bytes()


def add_signatures(
    metadata: Metadata[Any], keys: Path, role: str, trusted: Mapping[str, Key], least: int, *, password: str | None
) -> list[str]:
    """Sign with the keys of ``role`` in ``keys`` that are ``trusted`` and have not signed yet; their key ids.

    Raises:
        PublishError: fewer than ``least`` keys are there, a signer refuses, or it signs with another key than it says.
    """
    added = []
    for signer in signers_for(keys, role, trusted, least, password):
        key = signer.public_key
        if key.keyid in metadata.signatures:
            continue
        try:
            signature = metadata.sign(signer, append=True)
            key.verify_signature(signature, metadata.signed_bytes)
        except (UnsignedMetadataError, UnverifiedSignatureError, VerificationError) as error:
            metadata.signatures.pop(key.keyid, None)
            raise PublishError(
                f"The key of {role!r} in {keys} cannot sign: {_innermost(error)}.",
                remedy="Check that the token or service is there, its PIN, and that it holds the key it was imported as.",
            ) from error
        added.append(key.keyid)
    return added


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
