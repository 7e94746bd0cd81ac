"""Deployment targets, and the one place that imports coremltools."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from compiler.errors import CompilerError, ExtraMissing

Var = Any  # coremltools.converters.mil.mil.Var; the package carries no type information


class UnknownTarget(CompilerError):
    """A deployment target that the installed coremltools does not know."""


@dataclass(frozen=True, slots=True)
class Target:
    """``version`` is the iOS release (17 for "iOS17"); ``spec_version`` the Core ML specification's number for it."""

    name: str
    version: int
    spec_version: int


@cache
def load_coremltools() -> ModuleType:
    """Import coremltools without its messages about missing frameworks and native libraries.

    Raises:
        ExtraMissing: the package is not installed.
    """
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            import coremltools
    except ImportError as error:
        raise ExtraMissing(
            f"The Core ML exporter needs coremltools: {error}.", remedy="Install edgewright[coreml]."
        ) from error
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    module: ModuleType = coremltools
    return module


def find_target(name: str) -> Target:
    """The target called ``name`` ("iOS17"; macOS names of the same releases work as well).

    Raises:
        UnknownTarget: the name is unknown or older than ML programs (iOS15); the message lists the names.
        ExtraMissing: coremltools is not installed.
    """
    known = known_targets()
    if name not in known:
        raise UnknownTarget(
            f"Core ML has no deployment target {name!r}; ML programs run on {', '.join(known)}.",
            remedy="Choose one of the listed deployment targets.",
        )
    return known[name]


@cache
def known_targets() -> dict[str, Target]:
    """By every name, iOS and macOS alike, the releases that run ML programs, oldest first."""
    ct = load_coremltools()
    first = int(ct.target.iOS15.value)
    targets: dict[str, Target] = {}
    for name, member in ct.target.__members__.items():
        # macOS13 and its like are aliases of the iOS release with the same specification.
        release = member.name.removeprefix("iOS")
        if int(member.value) >= first and name.startswith(("iOS", "macOS")) and release.isdigit():
            targets[name] = Target(member.name, int(release), int(member.value))
    return targets


@contextlib.contextmanager
def fresh_builder_names() -> Iterator[Any]:
    """The MIL builder numbers its names in a process-wide table: an empty one makes every build name things alike."""
    from coremltools.converters.mil.mil import Builder

    before = Builder.name_count
    Builder.name_count = defaultdict(int)
    try:
        yield Builder
    finally:
        Builder.name_count = before
