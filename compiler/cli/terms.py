"""Options of ``release publish|add|rollout`` that say who gets a release, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])


def pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``NAME=VALUE``, repeated."""
    found = {}
    for value in values:
        name, equals, told = value.partition("=")
        if not (name and equals and told):
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        found[name] = told
    return found


def terms_options(command: F) -> F:
    """``--min-agent``, ``--min-runtime``, ``--window``."""
    for option in (
        click.option(
            "--window",
            "windows",
            multiple=True,
            metavar="WINDOW",
            help="When devices may take it, by their own clocks: '02:00-05:00', 'sat,sun 22:00-04:00 UTC'; may be repeated.",
        ),
        click.option(
            "--min-runtime",
            "min_runtimes",
            multiple=True,
            callback=pairs,
            metavar="NAME=VERSION",
            help="Oldest version of a runtime that may run it, such as onnxruntime=1.20; may be repeated.",
        ),
        click.option("--min-agent", default=None, help="Oldest agent version that may take it."),
    ):
        command = option(command)
    return command


def given(min_agent: str | None, min_runtimes: dict[str, str], windows: tuple[str, ...]) -> dict[str, Any]:
    """Fields of ``Rollout`` that were asked for; one that was not stays out of the index."""
    terms = {"min_agent": min_agent, "min_runtimes": min_runtimes or None, "windows": windows or None}
    return {name: value for name, value in terms.items() if value is not None}
