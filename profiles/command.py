"""How a command of ours ends: a typed error becomes a message, a remedy and an exit code; anything else is our bug (70)."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from profiles.errors import EdgewrightError, ExitCode

ERROR_SCHEMA = "edgewright.error/1"


def run_command(command: click.Command, args: Sequence[str] | None = None) -> NoReturn:
    """Run ``command`` as a script's whole body and leave the process with the right code.

    Errors go to stderr; with ``--json`` among the arguments they are also the one document on stdout, so that a pipeline
    reads one stream only. ``-v`` or ``--verbose`` among the arguments adds the trace.

    Args:
        command: the root command or group.
        args: command line without the program's name; ``sys.argv[1:]`` if None.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        code = command.main(arguments, standalone_mode=False)
    except click.exceptions.Abort:
        _line("Interrupted.")
        sys.exit(130)  # 128 + SIGINT, as shells report it
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EdgewrightError as error:
        _known(error, arguments)
        sys.exit(int(error.exit_code))
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away; Python would complain again while shutting down
        sys.exit(141)  # 128 + SIGPIPE
    except Exception as error:
        _unknown(error, arguments)
        sys.exit(int(ExitCode.BUG))
    # In this mode click returns the code of ctx.exit(), or the command's own return value, which is none of ours.
    sys.exit(code if isinstance(code, int) else 0)


def _known(error: EdgewrightError, arguments: Sequence[str]) -> None:
    _line(f"error: {error.message}")
    _line(f"  -> {error.remedy}")
    if _verbose(arguments):
        traceback.print_exc()
    if "--json" in arguments:
        click.echo(
            json.dumps(
                {
                    "schema": ERROR_SCHEMA,
                    "error": type(error).__name__,
                    "message": error.message,
                    "remedy": error.remedy,
                    "exit_code": int(error.exit_code),
                }
            )
        )


def _unknown(error: Exception, arguments: Sequence[str]) -> None:
    _line(f"internal error: {type(error).__name__}: {error}")
    if _verbose(arguments):
        traceback.print_exc()
    else:
        _line("  -> Run again with -v for the trace, and report it.")


def _verbose(arguments: Sequence[str]) -> bool:
    return any(argument in ("-v", "--verbose") for argument in arguments)


def _line(text: str) -> None:
    click.echo(text, err=True)
