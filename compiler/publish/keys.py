"""A folder of signing keys: encrypted ed25519 files by default, any securesystemslib signer by URI, public keys of other people.

A key has a stem, ``<role>`` or ``<role>-1``, ``<role>-2``, ..., and one to two files:

    STEM.pem   private key, PKCS#8, ed25519; encrypted unless asked otherwise. The line before says its public key
    STEM.uri   one line: where a signer holds the private key (signers.py), such as ``hsm:2?label=...``; its STEM.pub is beside it
    STEM.pub   public key as JSON. Alone: the key of somebody who signs elsewhere (a holder of a root key)

Root keys belong offline: after ``init`` move root-*.pem away; nothing but a change of keys asks for them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compiler.errors import PublishError, PublishTrustError
from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.files import storage_error, sync_dir, write_atomic
from runtimes.artifact.manifest import NAME_PATTERN

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, Key, Signer

PASSWORD_VARIABLE = "EDGEWRIGHT_KEY_PASSWORD"
MAX_PUBLIC_BYTES = 1 << 16
_PUBLIC_LINE = b"# public: "


@dataclass(frozen=True, slots=True)
class HeldKey:
    """One key of a folder. ``kind``: "file" (private key), "uri" (signer elsewhere), "public" (somebody else's)."""

    role: str
    path: Path
    kind: Literal["file", "uri", "public"]

    def public(self) -> Key | None:
        """The public key, for which no password is needed; None where a file of another version does not say it."""
        if self.kind != "file":
            beside = self.path.with_suffix(".pub")
            return read_public(beside) if beside.exists() else None
        try:
            first = self.path.read_bytes().partition(b"\n")[0]
        except OSError as error:
            raise PublishError(f"Cannot read {self.path}: {error.strerror}.", remedy="Check --keys.") from error
        return _parse_public(self.path, first[len(_PUBLIC_LINE) :]) if first.startswith(_PUBLIC_LINE) else None


def held_keys(keys: Path, role: str) -> list[HeldKey]:
    """The keys of ``role`` in the folder ``keys``: the plain name, then by number."""
    # "stable-*" would also find the key of a channel called "stable-eu": only numbers count.
    stems = {p.stem for p in keys.glob(f"{role}*.*") if p.suffix in (".pem", ".uri", ".pub")}
    mine = [s for s in stems if s == role or (s.startswith(f"{role}-") and s[len(role) + 1 :].isdecimal())]
    found = []
    for stem in sorted(mine, key=lambda s: int(s[len(role) + 1 :] or 0)):
        for suffix, kind in ((".pem", "file"), (".uri", "uri"), (".pub", "public")):
            if (path := keys / f"{stem}{suffix}").exists():
                found.append(HeldKey(role, path, kind))  # type: ignore[arg-type]
                break
    return found


def all_keys(keys: Path) -> list[HeldKey]:
    """Every key of the folder, by role. Raises PublishError if there is no such folder."""
    if not keys.is_dir():
        raise PublishError(f"{keys} is no folder.", remedy="Make keys with edgewright keys create.")
    stems = {p.stem for p in keys.iterdir() if p.suffix in (".pem", ".uri", ".pub") and not p.name.startswith(".")}
    roles = {re.sub(r"-\d+$", "", stem) for stem in stems}
    return [key for role in sorted(roles) for key in held_keys(keys, role)]


def create_keys(keys: Path, role: str, count: int, password: str | None) -> list[HeldKey]:
    """Make ``count`` new key files of ``role`` under free names. Raises PublishError, StorageError."""
    check_role(role)
    try:
        keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise storage_error(keys, error) from error
    made = []
    for _ in range(count):
        path = keys / f"{free_stem(keys, role)}.pem"
        ensure_signer(path, password)
        made.append(HeldKey(role, path, "file"))
    return made


def free_stem(keys: Path, role: str) -> str:
    """The first name that no key of ``role`` has; roots are always numbered, for there should be several."""
    taken = {key.path.stem for key in held_keys(keys, role)}
    first = [] if role == "root" else [role]
    return next(stem for stem in [*first, *(f"{role}-{n}" for n in range(1, len(taken) + 2))] if stem not in taken)


def check_role(role: str) -> None:
    """Raises PublishError if ``role`` cannot be one."""
    if not re.fullmatch(NAME_PATTERN, role) or "." in role or re.search(r"-\d+$", role):
        raise PublishError(
            f"{role!r} is no role.", remedy="Give root, targets, snapshot, timestamp, or a channel's name."
        )


def read_public(path: Path) -> Key:
    """A public key as ``write_public`` leaves it. Raises PublishError."""
    try:
        with path.open("rb") as file:
            return _parse_public(path, file.read(MAX_PUBLIC_BYTES))
    except OSError as error:
        raise PublishError(f"Cannot read {path}: {error.strerror}.", remedy="Check the path.") from error


def _parse_public(path: Path, data: bytes) -> Key:
    from securesystemslib.signer import Key

    try:
        document = json.loads(data)
        return Key.from_dict(document.pop("keyid"), document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PublishError(
            f"{path} is no public key: {error}.", remedy="Get it again from edgewright keys export."
        ) from error


def public_bytes(key: Key) -> bytes:
    """One line of canonical JSON."""
    return canonical_json({"keyid": key.keyid, **key.to_dict()}) + b"\n"


def write_public(path: Path, key: Key) -> None:
    """Raises StorageError."""
    write_atomic(path, public_bytes(key))


def ensure_signer(path: Path, password: str | None) -> CryptoSigner:
    """The signer of the key file ``path``, which is created if it does not exist.

    Args:
        password: encrypts a new file and opens an encrypted one; None means an unencrypted file.

    Raises:
        PublishError: the file cannot be read or opened with this password.
        StorageError: the file cannot be written; nothing is left behind.
    """
    from securesystemslib.signer import CryptoSigner

    if path.exists():
        return _load(path, password)
    signer = CryptoSigner.generate_ed25519()
    _write_private(path, _file_of(signer, password))
    return signer


def ensure_public(keys: Path, role: str, count: int, password: str | None) -> list[Key]:
    """Public keys of ``role``: all that the folder holds, and as many new key files as ``count`` still lacks.

    Raises what ``ensure_signer`` raises, and PublishError for a signer's URI without its public key.
    """
    found: dict[str, Key] = {}
    held = held_keys(keys, role)
    for key in held:
        # A key file says its public key unsealed: what a repository will trust comes from the private key itself.
        public = _load(key.path, password).public_key if key.kind == "file" else key.public()
        if public is None:
            raise PublishError(
                f"{key.path} has no public key beside it.", remedy="Bring it in with edgewright keys import."
            )
        found[public.keyid] = public
    while len(found) < count:
        made = ensure_signer(keys / f"{free_stem(keys, role)}.pem", password).public_key
        found[made.keyid] = made
    return list(found.values())


def _file_of(signer: CryptoSigner, password: str | None) -> bytes:
    """The key file; what stands before the first BEGIN of a PEM file is for people (RFC 7468, section 2)."""
    pem: bytes = signer.private_bytes
    if password is not None:
        from cryptography.hazmat.primitives import serialization as forms

        protection = forms.BestAvailableEncryption(password.encode())
        key = forms.load_pem_private_key(pem, None)
        pem = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, protection)
    return _PUBLIC_LINE + public_bytes(signer.public_key) + pem


def _write_private(path: Path, data: bytes) -> None:
    """Write with mode 0600 from the first byte on; never replaces a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
        sync_dir(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def change_password(keys: Path, old: str | None, new: str | None) -> list[Path]:
    """Encrypt every private key file of the folder with ``new`` (None: leave it plain); each is replaced atomically.

    Raises:
        PublishError: a file does not open with ``old``; nothing is changed then.
        StorageError: the disk refuses; some files may have the new password, and running again finishes.
    """
    paths = sorted(keys.glob("*.pem"))
    if not paths:
        raise PublishError(f"{keys} holds no key file.", remedy="Check the folder.")
    opened = [(path, _load(path, old)) for path in paths]
    for path, signer in opened:
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        _write_private(temporary, _file_of(signer, new))
        temporary.replace(path)
        sync_dir(keys)
    return paths


def _load(path: Path, password: str | None) -> CryptoSigner:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        pem = path.read_bytes()
        # An unencrypted file with a password at hand is fine: keys of both kinds may lie in one folder.
        secret = password.encode() if password is not None and b"ENCRYPTED" in pem else None
        key = load_pem_private_key(pem, secret)
    except OSError as error:
        raise PublishError(f"Cannot read the key {path}: {error.strerror}.", remedy="Check --keys.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PublishError(
            f"The key {path} does not open: {error}.", remedy=f"Set {PASSWORD_VARIABLE} to the password of the keys."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PublishError(
            f"The key {path} is not ed25519.", remedy="Use keys made by init, or a signer URI in a .uri file."
        )
    return CryptoSigner(key)


def signers_for(
    keys: Path, role: str, trusted: Mapping[str, Key], threshold: int, password: str | None
) -> list[Signer]:
    """Signers of ``role`` from the folder ``keys`` whose public keys are ``trusted`` (by key id), ``threshold`` at least.

    Raises:
        PublishError: too few keys that can sign, or they do not open.
        PublishTrustError: keys are there, but the repository does not trust them for this role.
        ExtraMissing: a signer URI needs a package that is not installed.
    """
    found = list(_signers(keys, role, trusted, password))
    fitting = [signer for signer in found if signer.public_key.keyid in trusted]
    if len(fitting) >= threshold:
        return fitting
    if found and not fitting:
        raise PublishTrustError(
            f"The repository does not trust the keys for {role!r} in {keys}: {len(fitting)} of {threshold} needed.",
            remedy="Use the keys that the repository was made with.",
        )
    if found:
        raise PublishTrustError(
            f"{keys} holds {len(fitting)} of the {threshold} keys that must sign for {role!r}.",
            remedy="Bring the other holders' keys together, or let each sign a draft: see docs/releases.md.",
        )
    raise PublishError(f"{keys} has no key for the role {role!r}.", remedy=f"Put {role}.pem or {role}.uri there.")


def _signers(keys: Path, role: str, trusted: Mapping[str, Key], password: str | None) -> Iterator[Signer]:
    from compiler.publish.signers import signer_by_uri, signers_by_uri

    for key in held_keys(keys, role):
        if key.kind == "file":
            yield _load(key.path, password)
        elif key.kind == "uri" and (public := key.public()) is not None:
            if public.keyid in trusted:
                yield signer_by_uri(key.path, public)
        elif key.kind == "uri":
            yield from signers_by_uri(key.path, trusted)
