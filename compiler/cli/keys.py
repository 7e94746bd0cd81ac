"""``edgewright keys``: make, bring in, list and hand out signing keys."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compiler.cli.signing import json_option, print_json, signing

if TYPE_CHECKING:
    from compiler.publish.keys import HeldKey

KEYS = click.argument("keys", type=click.Path(path_type=Path))
ROLE = click.option("--role", required=True, help="root, targets, snapshot, timestamp, or a channel's name.")
NO_PASSWORD = click.option("--no-password", is_flag=True, help="Leave the key files plain, unencrypted.")
NEW_PASSWORD_VARIABLE = "EDGEWRIGHT_NEW_KEY_PASSWORD"


@click.group()
def keys() -> None:
    """Manage the folder KEYS of signing keys; keep it secret, and keep root keys offline."""


def _described(key: HeldKey, trusted: dict[str, list[str]] | None = None) -> dict[str, Any]:
    public = key.public()
    described: dict[str, Any] = {
        "role": key.role,
        "name": key.path.stem,
        "kind": key.kind,
        "file": str(key.path),
        "keyid": public.keyid if public is not None else None,
        "scheme": public.scheme if public is not None else None,
    }
    if key.kind == "uri":
        described["uri"] = key.path.read_text("utf-8").strip()
    if trusted is not None:
        described["trusted_for"] = trusted.get(described["keyid"], [])
    return described


@keys.command()
@KEYS
@ROLE
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True)
@NO_PASSWORD
@json_option
def create(keys: Path, role: str, count: int, no_password: bool, as_json: bool) -> None:
    """Make new ed25519 key files of a role."""
    from compiler.publish.keys import create_keys

    password = signing(keys, no_password=no_password, create=True).password
    made = [_described(key) for key in create_keys(keys, role, count, password)]
    if as_json:
        print_json("edgewright.keys/1", {"keys": made, "encrypted": password is not None})
        return
    for key in made:
        click.echo(f"{key['file']}  {key['keyid']}")


@keys.command("list")
@KEYS
@click.option("--repo", type=click.Path(path_type=Path), help="Say what this repository trusts each key for.")
@json_option
def list_(keys: Path, repo: Path | None, as_json: bool) -> None:
    """List the keys of a folder; no password is needed."""
    from compiler.publish.keys import all_keys
    from compiler.publish.repository import load, trusted_keys

    trusted = trusted_keys(load(repo)) if repo is not None else None
    found = [_described(key, trusted) for key in all_keys(keys)]
    if as_json:
        print_json("edgewright.keys/1", {"keys": found})
        return
    for key in found:
        where = {"file": "file", "uri": key.get("uri"), "public": "public key only"}[key["kind"]]
        roles = key.get("trusted_for")
        told = "" if roles is None else f"  trusted for {', '.join(roles)}" if roles else "  not trusted"
        click.echo(f"{key['name']:16} {(key['keyid'] or '?')[:16]:16}  {where}{told}")


@keys.command("import")
@KEYS
@click.argument("source")
@ROLE
@json_option
def import_(keys: Path, source: str, role: str, as_json: bool) -> None:
    """Bring in SOURCE: a signer's URI (hsm:2?label=TOKEN, awskms:ID, gcpkms:..., ...) or somebody's public key (FILE.pub)."""
    from compiler.publish.signers import import_key

    key = _described(import_key(keys, role, source))
    if as_json:
        print_json("edgewright.keys/1", {"keys": [key]})
    else:
        click.echo(f"{key['file']}  {key['keyid']}")


@keys.command()
@KEYS
@click.option("--name", required=True, help="The key's name, as edgewright keys list shows it, such as root-1.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .pub file to write.")
@json_option
def export(keys: Path, name: str, output: Path, as_json: bool) -> None:
    """Write the public key of one key to a file, for whoever makes the repository."""
    from compiler.errors import OutputExists, PublishError
    from compiler.publish.keys import all_keys, write_public

    key = next((key for key in all_keys(keys) if key.path.stem == name), None)
    public = key.public() if key is not None else None
    if public is None:
        raise PublishError(f"{keys} has no key {name!r}.", remedy="See edgewright keys list.")
    if output.suffix != ".pub":
        raise PublishError(f"{output} does not end in .pub.", remedy="Name it so: edgewright keys import asks for it.")
    if output.exists():
        raise OutputExists(f"{output} exists.", remedy="Choose another file.")
    write_public(output, public)
    if as_json:
        print_json("edgewright.keys/1", {"keys": [{"name": name, "keyid": public.keyid, "file": str(output)}]})
    else:
        click.echo(f"{output}  {public.keyid}")


@keys.command()
@KEYS
@NO_PASSWORD
@json_option
def password(keys: Path, no_password: bool, as_json: bool) -> None:
    """Change the password of all key files in a folder.

    The old one comes from EDGEWRIGHT_KEY_PASSWORD, the new one from EDGEWRIGHT_NEW_KEY_PASSWORD; on a terminal both are asked for.
    """
    from compiler.errors import PublishError
    from compiler.publish.keys import PASSWORD_VARIABLE, change_password

    old, new = os.environ.get(PASSWORD_VARIABLE), None if no_password else os.environ.get(NEW_PASSWORD_VARIABLE)
    if not old and sys.stdin.isatty():
        old = click.prompt("Old password (empty: none)", hide_input=True, default="", show_default=False, err=True)
    if not new and not no_password and sys.stdin.isatty():
        new = click.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
    if not new and not no_password:
        raise PublishError(
            "There is no new password, and no terminal to ask on.",
            remedy=f"Set {NEW_PASSWORD_VARIABLE}, or pass --no-password for unencrypted keys.",
        )
    changed = change_password(keys, old or None, new or None)
    if as_json:
        print_json("edgewright.keys-password/1", {"files": [str(path) for path in changed], "encrypted": bool(new)})
    else:
        click.echo(f"{len(changed)} key files have the new password.")
