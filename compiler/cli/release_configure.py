"""``edgewright release configure``: settings of a channel's agents."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

from compiler.cli.signing import json_option, print_json, signing, signing_options


def _value(text: str) -> Any:
    """As TOML writes it; what TOML does not know is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _settings(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{value!r} is not NAME=VALUE, such as update.interval_s=900")
        found[name.strip()] = _value(text)
    return found


@click.command()
@click.argument("repo", type=click.Path(path_type=Path))
@signing_options
@click.option("--channel", default="stable", show_default=True)
@click.option(
    "--set",
    "change",
    multiple=True,
    callback=_settings,
    metavar="NAME=VALUE",
    help="Such as update.interval_s=900 or 'update.windows=[\"02:00-05:00\"]'; may be repeated.",
)
@click.option(
    "--unset", multiple=True, metavar="NAME", help="Leave it to the devices' own files again; may be repeated."
)
@click.option(
    "--file", type=click.Path(path_type=Path), help="TOML, in the sections of agent.toml; replaces what was set."
)
@click.option("--clear", is_flag=True, help="Take all settings away.")
@json_option
def configure(
    repo: Path,
    keys: Path,
    no_password: bool,
    channel: str,
    change: dict[str, Any],
    unset: tuple[str, ...],
    file: Path | None,
    clear: bool,
    as_json: bool,
) -> None:
    """Set what a channel's agents do, signed like a release; they take it at their next look for updates."""
    from compiler.publish.configure import configure as perform

    if not (change or unset or file or clear):
        raise click.UsageError("Give --set, --unset, --file or --clear.")
    wanted = (_from_file(file) if file is not None else {}) | change
    with_keys = signing(keys, no_password=no_password)
    now = perform(repo, with_keys, channel=channel, change=wanted, unset=unset, replace=clear or file is not None)
    if as_json:
        print_json("edgewright.release-settings/1", {"channel": channel, "settings": now})
        return
    for name, value in sorted(now.items()):
        click.echo(f"{name} = {value}")
    click.echo(f"Agents of {channel} have {len(now)} setting(s) from here.")


def _from_file(path: Path) -> dict[str, Any]:
    from compiler.errors import PublishError

    try:
        sections = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PublishError(f"Cannot read {path}: {error}.", remedy="Write it like a section of agent.toml.") from error
    return {
        f"{section}.{name}": value
        for section, values in sections.items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
