"""`edgewright`: the root command. Subcommands are imported when they are called, so that --help answers at once."""

from __future__ import annotations

import importlib
import logging

import click

from profiles.command import run_command

COMMANDS = {
    "build": ("compiler.cli.build", "build", "Turn a trained model into verified artifacts."),
    "verify": ("compiler.cli.verify", "verify", "Execute a finished build once more, on this machine."),
    "run": ("compiler.cli.run", "run", "Execute an artifact or a source on its runtime."),
    "profiles": ("compiler.cli.profiles", "profiles", "List the device profiles, or show one."),
    "keys": ("compiler.cli.keys", "keys", "Manage the keys that sign releases."),
    "release": ("compiler.cli.release", "release", "Publish signed releases and inspect them."),
    "delta": ("compiler.cli.delta", "delta", "Encode and apply delta updates."),
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        if not any(parameter.name == "verbose" for parameter in command.params):
            command.params.append(_verbose_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, _, short) in COMMANDS.items()])


def _verbose_option() -> click.Option:
    """Every command takes it; profiles.command looks for it when something unexpected happens."""
    return click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        callback=_log,
        help="Log each stage, and show the trace of an error.",
    )


def _log(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        logging.basicConfig(format="%(name)s: %(message)s")  # to stderr; other packages only warn
        for ours in ("compiler", "runtimes", "profiles"):
            logging.getLogger(ours).setLevel(logging.INFO)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgewright")
def cli() -> None:
    """From a trained model to a verified, signed, updatable deployment on phones and IoT boards."""


def main() -> None:
    """Entry point of the installed script."""
    run_command(cli)


if __name__ == "__main__":
    main()
