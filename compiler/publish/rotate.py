"""Key rotation: new keys for a role, also when old ones are lost, and at no moment a repository that devices refuse.

The roles that a new key signs are written first, signed by old and new keys together, so that they hold under the old root and the
new one; the last write, one rename, is what makes the old keys worthless. Source: TUF 1.0.33, sections 6.1 and 5.3.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.metadata import Key, Metadata, Root, Targets

from compiler.errors import PublishError, PublishTrustError
from compiler.publish.keys import ensure_signer, key_files, signers_for
from compiler.publish.release import Signing, commit_changes
from compiler.publish.repository import TOP_ROLES, Repository, load, locked
from runtimes.artifact.files import write_atomic


@dataclass(frozen=True, slots=True)
class Rotated:
    """``retired`` and ``trusted`` are key ids; ``new_files`` hold the new private keys."""

    role: str
    retired: tuple[str, ...]
    trusted: tuple[str, ...]
    new_files: tuple[Path, ...]
    root_version: int


def rotate(repo: Path, signing: Signing, role: str, *, lost: bool = False) -> Rotated:
    """Replace the keys of ``role``: all of them, or with ``lost`` only those that the keys folder does not hold.

    Args:
        role: root, targets, snapshot, timestamp, or a channel.

    Raises:
        PublishError: no such role, nothing is lost, or too few of the keys that must sign this are there.
        PublishTrustError: the repository, or a key, is not what it should be.
        StorageError: the disk refuses. In every case devices accept the repository as before.
    """
    with locked(repo):
        repository = load(repo)
        delegator = _delegator(repository, role)
        old = {keyid: delegator.get_key(keyid) for keyid in delegator.get_delegated_role(role).keyids}
        retired = _retired(signing, role, old, lost=lost)
        made = list(_new_keys(signing, role, old, len(retired)))
        for keyid in retired:
            delegator.revoke_key(keyid, role)
        for _, key in made:
            delegator.add_key(key, role)
        if role in TOP_ROLES:
            _rotate_top_role(repository, signing, role, old)
        else:
            commit_changes(repository, ["targets", role], signing, {role: old})
    trusted = tuple(delegator.get_delegated_role(role).keyids)
    return Rotated(role, tuple(retired), trusted, tuple(path for path, _ in made), repository.root.signed.version)


def _delegator(repository: Repository, role: str) -> Root | Targets:
    if role in TOP_ROLES:
        return repository.root.signed
    repository.channel(role)  # says which channels there are
    return repository.targets.signed


def _retired(signing: Signing, role: str, old: dict[str, Key], *, lost: bool) -> list[str]:
    if not lost:
        return list(old)
    held = {signer.public_key.keyid for signer in signers_for(signing.keys, role, old, 0, signing.password)}
    missing = [keyid for keyid in old if keyid not in held]
    if not missing:
        raise PublishError(
            f"All keys of {role!r} are in {signing.keys}: none is lost.", remedy="Leave out --lost to replace them all."
        )
    return missing


def _new_keys(signing: Signing, role: str, old: dict[str, Key], count: int) -> Iterator[tuple[Path, Key]]:
    """Key files under free numbers; one that an interrupted rotation left, and nobody trusts yet, is used."""
    signing.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    existing, number, found = set(key_files(signing.keys, role)), 0, 0
    while found < count:
        number += 1
        path = signing.keys / f"{role}-{number}.pem"
        key = ensure_signer(path, signing.password).public_key
        if key.keyid not in old:
            found += 1
            yield path, key
        elif path not in existing:
            raise PublishTrustError(f"{path} is a new key and known already.", remedy="Check the keys folder.")


def _rotate_top_role(repository: Repository, signing: Signing, role: str, old: dict[str, Key]) -> None:
    """Roles first, signed by old and new keys; the root last."""
    root = repository.root
    before = load(repository.folder).root.signed
    root.signed.version += 1
    root.signed.expires = _expires(signing)
    data = _signed_root(root, before, signing)
    if role != "root":
        commit_changes(repository, ["targets"] if role == "targets" else [], signing, {role: old})
    write_atomic(repository.metadata / f"{root.signed.version}.root.json", data)


def _expires(signing: Signing) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(signing.seconds, UTC) + signing.lifetimes.of("root")


def _signed_root(root: Metadata[Root], before: Root, signing: Signing) -> bytes:
    """Signed by a threshold of the old root keys and a threshold of the new ones."""
    root.signatures.clear()
    for trusted in (before, root.signed):
        role = trusted.roles["root"]
        keys = {keyid: trusted.get_key(keyid) for keyid in role.keyids}
        for signer in signers_for(signing.keys, "root", keys, role.threshold, signing.password):
            root.sign(signer, append=True)
    return root.to_bytes()
