"""How the demo talks: chapter headings, the commands it runs, facts for the table at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = Path(sysconfig.get_path("scripts"))


class DemoFailed(Exception):
    """A step did not do what the story says."""


@dataclass
class Story:
    """Prints the chapters and collects (what, outcome) rows."""

    chapters: int
    rows: list[tuple[str, str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _chapter: int = 0

    def chapter(self, title: str) -> None:
        self._chapter += 1
        print(f"\n[{self._chapter}/{self.chapters}] {title}   ({time.monotonic() - self.started:.0f} s)", flush=True)

    def fact(self, what: str, outcome: str) -> None:
        self.rows.append((what, outcome))
        print(f"    {what}: {outcome}", flush=True)

    def table(self) -> str:
        width = max(len(what) for what, _ in self.rows)
        lines = [f"{what.ljust(width)}  {outcome}" for what, outcome in self.rows]
        rule = "-" * max(len(line) for line in lines)
        return "\n".join([rule, *lines, rule])

    def expect(self, condition: bool, what: str) -> None:
        """Stop the story where it is not true."""
        if not condition:
            raise DemoFailed(what)


def command(name: str) -> str:
    """Path of one of our installed scripts."""
    return str(SCRIPTS / name)


def run(*arguments: str, expect: tuple[int, ...] = (0,), show: bool = True, timeout: float = 1800) -> str:
    """Run one of our commands, show it as a user would type it, return its standard output."""
    if show:
        print("    $ " + " ".join(_short(a) for a in arguments), flush=True)
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
    process = [command(arguments[0]), *arguments[1:]]
    done = subprocess.run(process, capture_output=True, text=True, env=environment, timeout=timeout)
    if done.returncode not in expect:
        sys.stdout.write(done.stdout + done.stderr)
        raise DemoFailed(
            f"{arguments[0]} {arguments[1]} ended with {done.returncode}, expected {' or '.join(map(str, expect))}"
        )
    return done.stdout


def _short(argument: str) -> str:
    """Paths below the working folder as a user would write them."""
    path = Path(argument)
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if inside else argument
