"""Key rotation: new keys for a role, also when old ones are lost, and at no moment a repository that devices refuse.

The roles that a new key signs are written first, signed by old and new keys together, so that they hold under the old root and the
new one; the last write, one rename, is what makes the old keys worthless. Source: TUF 1.0.33, sections 6.1 and 5.3.4.

A new root needs a threshold of the old root's keys. Where these are in several hands, ``rotate`` writes a draft instead, each
holder signs it (``sign_root``) on a machine of their own, and ``adopt_root`` puts it in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Key, Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from compiler.errors import OutputExists, PublishError, PublishTrustError
from compiler.publish.keys import ensure_signer, held_keys, signers_for
from compiler.publish.release import Signing, commit_changes
from compiler.publish.repository import TOP_ROLES, Repository, add_signatures, check_threshold, load, locked
from runtimes.artifact.files import write_atomic


@dataclass(frozen=True, slots=True)
class Rotated:
    """``retired`` and ``trusted`` are key ids; ``new_files`` hold new keys, ``old_files`` retired ones: destroy them.

    ``draft``: a root that waits for signatures.
    """

    role: str
    retired: tuple[str, ...]
    trusted: tuple[str, ...]
    new_files: tuple[Path, ...]
    old_files: tuple[Path, ...]
    root_version: int
    draft: Path | None = None


@dataclass(frozen=True, slots=True)
class RootSignatures:
    """Who signed a root file: ``added`` key ids by this call, ``have`` of its own keys so far, ``needed`` for it to hold."""

    path: Path
    version: int
    added: tuple[str, ...]
    have: int
    needed: int


def rotate(
    repo: Path,
    signing: Signing,
    role: str,
    *,
    lost: bool = False,
    retire: Sequence[str] = (),
    use: Sequence[str] = (),
    renew: bool = False,
    threshold: int | None = None,
    draft: Path | None = None,
) -> Rotated:
    """Replace the keys of ``role``: all of them, or only those that ``lost`` or ``retire`` say, by new ones.

    Args:
        role: root, targets, snapshot, timestamp, or a channel.
        lost: replace the keys that the folder does not hold.
        retire: replace the keys with these ids (at least their first eight digits).
        use: stems of keys in the folder that come in (``timestamp-2``, after ``import_key``); as many as are missing are made.
        renew: retire none; a new root with a later expiry.
        threshold: how many root keys must sign from now on.
        draft: write the new root there, signed by what is at hand, and leave the repository as it is.

    Raises:
        PublishError: no such role or key, nothing is lost, or too few of the keys that must sign this are there.
        PublishTrustError: the repository, or a key, is not what it should be.
        StorageError: the disk refuses. In every case devices accept the repository as before.
    """
    if (renew or threshold is not None or draft is not None) and role not in TOP_ROLES:
        raise PublishError(
            f"The channel {role!r} has no root.", remedy="Give --renew, --threshold and --draft to roots."
        )
    if draft is not None and draft.exists():
        raise OutputExists(f"{draft} exists.", remedy="Choose a new file, or remove this one.")
    with locked(repo):
        repository = load(repo)
        delegator = _delegator(repository, role)
        old = {keyid: delegator.get_key(keyid) for keyid in delegator.get_delegated_role(role).keyids}
        retired = [] if renew else _retired(signing, role, old, lost=lost, named=retire)
        made = list(_new_keys(signing, role, old, use, len(retired)))
        gone = tuple(h.path for h in held_keys(signing.keys, role) if (p := h.public()) and p.keyid in retired)
        for keyid in retired:
            delegator.revoke_key(keyid, role)
        for _, key in made:
            delegator.add_key(key, role)
        if threshold is not None:
            check_threshold(threshold, len(repository.root.signed.roles["root"].keyids))
            repository.root.signed.roles["root"].threshold = threshold
        if role in TOP_ROLES:
            _next_root(repository, signing, draft)
        else:
            commit_changes(repository, ["targets", role], signing, {role: old})
    trusted = tuple(delegator.get_delegated_role(role).keyids)
    files = tuple(path for path, _ in made)
    return Rotated(role, tuple(retired), trusted, files, gone, repository.root.signed.version, draft)


def _delegator(repository: Repository, role: str) -> Root | Targets:
    if role in TOP_ROLES:
        return repository.root.signed
    repository.channel(role)  # says which channels there are
    return repository.targets.signed


def _retired(signing: Signing, role: str, old: dict[str, Key], *, lost: bool, named: Sequence[str]) -> list[str]:
    if named:
        return [_named(role, old, wanted) for wanted in dict.fromkeys(named)]
    if not lost:
        return list(old)
    held = {signer.public_key.keyid for signer in signers_for(signing.keys, role, old, 0, signing.password)}
    # Somebody else's key that is known here is not lost.
    held |= {public.keyid for key in held_keys(signing.keys, role) if (public := key.public())}
    missing = [keyid for keyid in old if keyid not in held]
    if not missing:
        raise PublishError(
            f"All keys of {role!r} are in {signing.keys}: none is lost.", remedy="Leave out --lost to replace them all."
        )
    return missing


def _named(role: str, old: dict[str, Key], wanted: str) -> str:
    found = [keyid for keyid in old if len(wanted) >= 8 and keyid.startswith(wanted)]
    if len(found) != 1:
        raise PublishError(
            f"{role!r} has no key {wanted!r}; it has {', '.join(keyid[:12] for keyid in old)}.",
            remedy="Give the first eight digits or more of one of these.",
        )
    return found[0]


def _new_keys(
    signing: Signing, role: str, old: dict[str, Key], use: Sequence[str], count: int
) -> Iterator[tuple[Path, Key]]:
    """The named keys of the folder, then new files. Nothing else that lies there comes in: it may be a key that was retired."""
    signing.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    held = {key.path.stem: key for key in held_keys(signing.keys, role)}
    for stem in dict.fromkeys(use):
        public = held[stem].public() if stem in held else None
        if public is None or public.keyid in old:
            raise PublishError(
                f"{signing.keys} has no new key {stem!r} of {role!r}; it has {', '.join(held) or 'none'}.",
                remedy=f"Bring it in first: edgewright keys import {signing.keys} --role {role} URI-or-PUB.",
            )
        yield held[stem].path, public
    number = 0
    for _ in range(count - len(set(use))):
        while True:
            number += 1
            if f"{role}-{number}" not in held:
                break
        path = signing.keys / f"{role}-{number}.pem"
        yield path, ensure_signer(path, signing.password).public_key


def _next_root(repository: Repository, signing: Signing, draft: Path | None) -> None:
    """A new version of the root, signed by a threshold of the old keys and of the new ones, or as a draft by what is there."""
    root = repository.root
    before = load(repository.folder).root.signed
    root.signed.version += 1
    signing.lifetimes.stamp("root", root.signed, signing.seconds)
    root.signatures.clear()
    for trusted in (before, root.signed):
        role = trusted.roles["root"]
        keys = {keyid: trusted.get_key(keyid) for keyid in role.keyids}
        if draft is None or held_keys(signing.keys, "root"):
            least = role.threshold if draft is None else 0
            add_signatures(root, signing.keys, "root", keys, least, password=signing.password)
    if draft is not None:
        write_atomic(draft, root.to_bytes())
        return
    _put_in_force(repository, before, signing)


def _put_in_force(repository: Repository, before: Root, signing: Signing) -> None:
    """The roles whose keys changed first, signed by old and new keys; the root last."""
    root = repository.root
    changed = {
        role: {keyid: before.get_key(keyid) for keyid in before.roles[role].keyids}
        for role in TOP_ROLES[1:]
        if sorted(before.roles[role].keyids) != sorted(root.signed.roles[role].keyids)
    }
    if changed:
        commit_changes(repository, ["targets"] if "targets" in changed else [], signing, changed)
    write_atomic(repository.metadata / f"{root.signed.version}.root.json", root.to_bytes())


def sign_root(path: Path, signing: Signing) -> RootSignatures:
    """Add the signatures of all root keys in ``signing.keys`` to a root file: a draft, or the 1.root.json of ``create``.

    Keys that the file itself does not trust sign too: those that it retires must agree to it.

    Raises:
        PublishError: the file is no root, the folder holds no root key, or it does not open. StorageError. The file is as it was.
    """
    root = _read_root(path)
    keys = {p.keyid: p for held in held_keys(signing.keys, "root") if (p := held.public()) is not None}
    added = add_signatures(root, signing.keys, "root", keys, 1, password=signing.password)
    if added:
        write_atomic(path, root.to_bytes())
    return signatures_of(path, root, added)


def signatures_of(path: Path, root: Metadata[Root], added: Sequence[str] = ()) -> RootSignatures:
    """What ``root``, kept in ``path``, has and lacks."""
    role = root.signed.roles["root"]
    have = len(set(role.keyids) & set(root.signatures))
    return RootSignatures(path, root.signed.version, tuple(added), have, role.threshold)


def adopt_root(repo: Path, path: Path, signing: Signing) -> RootSignatures:
    """Put a draft that its holders signed in force; roles whose keys it changes are signed by old and new keys.

    Raises:
        PublishTrustError: it is not the next version, or a threshold of the old root's keys or of its own has not signed it.
        PublishError, StorageError: see ``rotate``. In every case devices accept the repository as before.
    """
    with locked(repo):
        repository = load(repo)
        before = repository.root.signed
        root = _read_root(path)
        if root.signed.version != before.version + 1:
            raise PublishTrustError(
                f"{path} is version {root.signed.version} of the root; {repo} is at {before.version}.",
                remedy="Make the draft again.",
            )
        try:
            for trusted in (before, root.signed):
                trusted.verify_delegate("root", root.signed_bytes, root.signatures)
        except RepositoryError as error:
            raise PublishTrustError(
                f"{path} lacks signatures: {error}.",
                remedy="Let more holders of root keys, old and new, sign it with edgewright release sign.",
            ) from error
        repository.root = root
        _put_in_force(repository, before, signing)
    return signatures_of(path, root)


def _read_root(path: Path) -> Metadata[Root]:
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
    except OSError as error:
        raise PublishError(f"Cannot read {path}: {error.strerror}.", remedy="Check the path.") from error
    except (DeserializationError, ValueError) as error:
        raise PublishError(f"{path} is no metadata: {error}.", remedy="Give a root file.") from error
    if not isinstance(metadata.signed, Root):
        raise PublishError(f"{path} is {metadata.signed.type} metadata.", remedy="Give a root file.")
    return metadata
