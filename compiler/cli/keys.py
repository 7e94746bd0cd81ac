"""Options and password handling that signing commands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from compiler.publish.release import Signing

F = TypeVar("F", bound=Callable[..., object])


def signing_options(command: F) -> F:
    """``--keys DIR`` and ``--no-password``."""
    for option in (
        click.option("--no-password", is_flag=True, help="The keys are (or become) plain, unencrypted files."),
        click.option(
            "--keys", type=click.Path(path_type=Path), required=True, help="Folder of signing keys; keep it secret."
        ),
    ):
        command = option(command)
    return command


def signing(keys: Path, *, no_password: bool, create: bool = False) -> Signing:
    """The password comes from EDGEWRIGHT_KEY_PASSWORD, or is asked for on a terminal.

    Args:
        create: new keys will be made; the password is asked for twice.

    Raises:
        PublishError: no password, no terminal to ask on, and no ``--no-password``.
    """
    from compiler.errors import PublishError
    from compiler.publish.keys import PASSWORD_VARIABLE
    from compiler.publish.release import Signing

    if no_password:
        return Signing(keys)
    password = os.environ.get(PASSWORD_VARIABLE)
    if not password and sys.stdin.isatty():
        password = click.prompt("Password of the keys", hide_input=True, confirmation_prompt=create, err=True)
    if not password:
        raise PublishError(
            f"The keys in {keys} need a password, and there is no terminal to ask on.",
            remedy=f"Set {PASSWORD_VARIABLE}, or pass --no-password for unencrypted keys.",
        )
    return Signing(keys, password)


def print_json(schema: str, document: dict[str, Any]) -> None:
    """The one document of a ``--json`` command."""
    click.echo(json.dumps({"schema": schema, **document}, sort_keys=True))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
