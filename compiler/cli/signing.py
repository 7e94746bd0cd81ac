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


def _days(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    chosen = {}
    for value in values:
        role, _, days = value.partition("=")
        if not role or not days.isdecimal():
            raise click.BadParameter(f"{value!r} is not ROLE=DAYS, such as timestamp=7")
        chosen[role] = int(days)
    return chosen


days_option = click.option(
    "--days",
    multiple=True,
    callback=_days,
    metavar="ROLE=DAYS",
    help="How long signatures of a role hold, from now on; may be repeated. Defaults: root 730, targets and channels 365, "
    "snapshot 30, timestamp 30.",
)


def signing(keys: Path, *, no_password: bool, create: bool = False, days: dict[str, int] | None = None) -> Signing:
    """The password comes from EDGEWRIGHT_KEY_PASSWORD, or is asked for on a terminal.

    Args:
        create: new keys will be made; the password is asked for twice.
        days: lifetimes by role, remembered in that role's metadata.

    Raises:
        PublishError: no password, no terminal to ask on, and no ``--no-password``.
    """
    from compiler.errors import PublishError
    from compiler.publish.keys import PASSWORD_VARIABLE
    from compiler.publish.release import Signing
    from compiler.publish.repository import Lifetimes

    lifetimes = Lifetimes(chosen=days or {})
    if no_password:
        return Signing(keys, lifetimes=lifetimes)
    password = os.environ.get(PASSWORD_VARIABLE)
    if not password and sys.stdin.isatty():
        password = click.prompt("Password of the keys", hide_input=True, confirmation_prompt=create, err=True)
    if not password:
        raise PublishError(
            f"The keys in {keys} need a password, and there is no terminal to ask on.",
            remedy=f"Set {PASSWORD_VARIABLE}, or pass --no-password for unencrypted keys.",
        )
    return Signing(keys, password, lifetimes=lifetimes)


def print_json(schema: str, document: dict[str, Any]) -> None:
    """The one document of a ``--json`` command."""
    click.echo(json.dumps({"schema": schema, **document}, sort_keys=True))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
