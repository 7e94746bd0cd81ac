"""Signing keys: encrypted ed25519 files by default, any securesystemslib signer by URI.

A keys folder holds, per role, ``<role>.pem`` (several as ``<role>-1.pem``, ``<role>-2.pem``, ...: PKCS#8, ed25519) or
``<role>.uri``: one line with a securesystemslib signer URI (``hsm:``, ``gcpkms:``, ``awskms:``, ...) whose public key the
repository trusts.
Root keys belong offline: after ``init`` move root-*.pem away; nothing but a change of keys asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import ExtraMissing, PublishError, PublishTrustError
from runtimes.artifact.files import storage_error, sync_dir

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, Key, Signer

PASSWORD_VARIABLE = "EDGEWRIGHT_KEY_PASSWORD"


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
    _write_private(path, _encrypted(signer.private_bytes, password))
    return signer


def _encrypted(pem: bytes, password: str | None) -> bytes:
    if password is None:
        return pem
    from cryptography.hazmat.primitives import serialization as forms

    key = forms.load_pem_private_key(pem, None)
    protection = forms.BestAvailableEncryption(password.encode())
    return key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, protection)


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
        PublishError: too few key files, or they do not open.
        PublishTrustError: key files are there, but the repository does not trust them for this role.
        ExtraMissing: a signer URI needs a package that is not installed.
    """
    found: list[Signer] = [_load(path, password) for path in key_files(keys, role)]
    found += _by_uri(keys / f"{role}.uri", trusted)
    fitting = [signer for signer in found if signer.public_key.keyid in trusted]
    if len(fitting) >= threshold:
        return fitting
    if found:
        raise PublishTrustError(
            f"The repository does not trust the keys for {role!r} in {keys}: {len(fitting)} of {threshold} needed.",
            remedy="Use the keys that the repository was made with.",
        )
    raise PublishError(f"{keys} has no key for the role {role!r}.", remedy=f"Put {role}.pem or {role}.uri there.")


def key_files(keys: Path, role: str) -> Iterator[Path]:
    """The key files of a role."""
    if (keys / f"{role}.pem").exists():
        yield keys / f"{role}.pem"
    # "stable-*" would also find the key of a channel called "stable-eu": only numbers count.
    yield from sorted(p for p in keys.glob(f"{role}-*.pem") if p.stem[len(role) + 1 :].isdecimal())


def _by_uri(path: Path, trusted: Mapping[str, Key]) -> Iterator[Signer]:
    """A signer for each trusted key that the URI's backend holds."""
    if not path.exists():
        return
    from securesystemslib.exceptions import Error, KeyMismatchError, UnsupportedLibraryError
    from securesystemslib.signer import Signer

    uri = path.read_text("utf-8").strip()
    for key in trusted.values():
        try:
            yield Signer.from_priv_key_uri(uri, key)
        except KeyMismatchError:
            continue
        except UnsupportedLibraryError as error:
            raise ExtraMissing(
                f"The signer {uri!r} needs a package: {error}.", remedy="Install it beside edgewright."
            ) from error
        except (Error, ValueError, OSError) as error:
            raise PublishError(f"The signer {uri!r} in {path} fails: {error}.", remedy="Check the URI.") from error
