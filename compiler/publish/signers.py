"""Private keys that never are files here: PKCS#11 tokens and cloud key services, by securesystemslib's signer URIs.

    hsm:KEYID?label=TOKEN                       a PKCS#11 token; PYKCS11LIB names its module, EDGEWRIGHT_KEY_PIN holds the PIN
    awskms:KEY   gcpkms:projects/.../cryptoKeyVersions/N   azurekms:VAULT/KEY   vault:KEY   gpg:FINGERPRINT   file2:PATH

A service is asked for its public key once (``import_key``); what the repository then trusts is that key and no other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlparse

from compiler.errors import ExtraMissing, PublishError
from compiler.publish.keys import HeldKey, check_role, ensure_signer, free_stem, held_keys, read_public, write_public
from runtimes.artifact.files import storage_error, write_atomic

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

PIN_VARIABLE = "EDGEWRIGHT_KEY_PIN"
# What a scheme needs besides, as extras of securesystemslib.
EXTRAS = {"hsm": "hsm", "awskms": "awskms", "gcpkms": "gcpkms", "azurekms": "azurekms", "vault": "vault"}


def ask_secret(what: str) -> str:
    """A token's PIN, from EDGEWRIGHT_KEY_PIN or a terminal. Raises PublishError."""
    pin = os.environ.get(PIN_VARIABLE)
    if pin:
        return pin
    if not sys.stdin.isatty():
        raise PublishError(
            f"The signer needs its {what}, and there is no terminal to ask on.", remedy=f"Set {PIN_VARIABLE}."
        )
    from getpass import getpass

    return getpass(f"{what} of the signing token: ")


def signer_by_uri(path: Path, public: Key) -> Signer:
    """The signer that the file ``path`` names, for the key ``public``.

    Raises:
        ExtraMissing: it needs a package that is not installed.
        PublishError: the URI is wrong, or the service refuses.
    """
    uri = _read(path)
    with_public = f"The signer {uri!r} in {path}"
    return _guarded(uri, with_public, lambda signer: signer.from_priv_key_uri(uri, public, ask_secret))  # type: ignore[no-any-return]


def signers_by_uri(path: Path, trusted: Mapping[str, Key]) -> Iterator[Signer]:
    """For a URI without its public key beside it: a signer for each trusted key that the service says it holds."""
    from securesystemslib.exceptions import KeyMismatchError

    for key in trusted.values():
        try:
            yield signer_by_uri(path, key)
        except PublishError as error:
            if not isinstance(error.__cause__, KeyMismatchError):
                raise


def import_key(keys: Path, role: str, source: str) -> HeldKey:
    """Bring a key of ``role`` into the folder ``keys`` under a free name.

    Args:
        source: a signer's URI, whose service is asked for the public key; or the path of somebody's public key (``STEM.pub``).

    Raises:
        ExtraMissing: the signer needs a package that is not installed.
        PublishError: the URI or file is wrong, the service refuses, or the key is in the folder already.
        StorageError: the disk refuses.
    """
    check_role(role)
    theirs = source.endswith(".pub")
    full, public = (
        ("", read_public(Path(source)))
        if theirs
        else _guarded(source, f"The signer {source!r}", lambda _: _import(source))
    )
    if any((known := key.public()) is not None and known.keyid == public.keyid for key in held_keys(keys, role)):
        raise PublishError(f"{keys} holds this key of {role!r} already.", remedy="Nothing is left to do.")
    stem = free_stem(keys, role)
    try:
        keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise storage_error(keys, error) from error
    write_public(keys / f"{stem}.pub", public)  # first: a URI without it would be tried against every trusted key
    if theirs:
        return HeldKey(role, keys / f"{stem}.pub", "public")
    write_atomic(keys / f"{stem}.uri", f"{full}\n".encode())
    return HeldKey(role, keys / f"{stem}.uri", "uri")


def _import(uri: str) -> tuple[str, Any]:
    """The full URI, and the public key, as the service tells them."""
    from securesystemslib import signer

    scheme, _, rest = uri.partition(":")
    if scheme == "hsm":
        parsed = urlparse(uri)
        label = dict(parse_qsl(parsed.query)).get("label")
        return signer.HSMSigner.import_(int(parsed.path) if parsed.path else None, label, ask_secret)
    if scheme == "azurekms":
        vault, _, name = rest.partition("/")
        return signer.AzureSigner.import_(vault, name)
    if scheme == "file2":
        if not Path(rest).exists():
            raise ValueError(f"{rest} does not exist")
        return uri, ensure_signer(Path(rest), None).public_key
    kinds: dict[str, Any] = {
        "awskms": signer.AWSSigner,
        "gcpkms": signer.GCPSigner,
        "vault": signer.VaultSigner,
        "gpg": signer.GPGSigner,
    }
    if scheme not in kinds:
        raise ValueError(f"unknown scheme {scheme!r}; known are {', '.join(['hsm', 'azurekms', 'file2', *kinds])}")
    full, key = kinds[scheme].import_(rest)
    return full, key


def _guarded(uri: str, what: str, action: Any) -> Any:
    """``action(Signer)``, with what a service's library raises in our words."""
    from securesystemslib.exceptions import UnsupportedLibraryError
    from securesystemslib.signer import Signer

    try:
        return action(Signer)
    except PublishError:
        raise
    except UnsupportedLibraryError as error:
        extra = EXTRAS.get(uri.partition(":")[0])
        remedy = f"Install it: pip install 'securesystemslib[{extra}]'." if extra else "Install it beside edgewright."
        raise ExtraMissing(f"{what} needs a package: {error}.", remedy=remedy) from error
    except Exception as error:  # every service's library has a tree of errors of its own
        said = str(error) or type(error).__name__
        raise PublishError(f"{what} fails: {said}.", remedy="Check the URI, and that the service answers.") from error


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PublishError(f"Cannot read {path}: {error}.", remedy="Check --keys.") from error
