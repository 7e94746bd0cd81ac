"""What a transport is, and what the remote ones share: the bundle of our code that they send."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hw_benchmarks.errors import MeasurementFailed, TargetUnreachable
from profiles.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ("profiles", "runtimes", "hw_benchmarks")
MAIN = "from hw_benchmarks.measure import main\nmain()\n"


class Transport(Protocol):
    """Carries one measurement to a target and its result back.

    ``prepare`` copies the artifact (a file, or a folder) and returns its path there; ``measure`` runs one request in a
    fresh process there; ``close`` removes everything that was copied.
    """

    def __init__(self, address: str) -> None: ...

    def prepare(self, artifact: Path) -> str: ...

    def measure(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Raises TargetUnreachable, MeasurementFailed."""
        ...

    def close(self) -> None: ...


def write_bundle(path: Path) -> None:
    """Our code that the target needs, as one file that python3 runs; the same code gives the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in BUNDLED:
            for file in sorted((ROOT / package).rglob("*.py")):
                info = zipfile.ZipInfo(file.relative_to(ROOT).as_posix(), (1980, 1, 1, 0, 0, 0))
                archive.writestr(info, file.read_bytes())
        archive.writestr(zipfile.ZipInfo("__main__.py", (1980, 1, 1, 0, 0, 0)), MAIN)


def run_command(command: Sequence[str], timeout_s: float, target: str) -> str:
    """Run a command of this machine (python, ssh, scp, adb) and return its output. Raises TargetUnreachable, MeasurementFailed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except FileNotFoundError as error:
        raise TargetUnreachable(f"{command[0]} is not installed here.", remedy=f"Install {command[0]}.") from error
    except subprocess.TimeoutExpired as error:
        raise MeasurementFailed(
            f"{target} did not answer within {timeout_s:g} s.", remedy="Shorten --duration, or raise --timeout."
        ) from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise TargetUnreachable(
            f"{command[0]} for {target} ended with {done.returncode}: {last}",
            remedy="Check that the target answers and has python3, numpy and the runtime.",
        )
    return done.stdout


def read_answer(text: str, target: str) -> dict[str, Any]:
    """The last line of a measurement's output. Raises MeasurementFailed for an error there, TargetUnreachable for nonsense."""
    try:
        document = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise TargetUnreachable(
            f"{target} answered nothing readable.", remedy="Run the command there by hand."
        ) from error
    if "error" in document:
        found = document["error"]
        if found["exit_code"] == ExitCode.MISSING:
            raise TargetUnreachable(f"On {target}: {found['message']}", remedy=found["remedy"])
        raise MeasurementFailed(f"On {target}: {found['message']}", remedy=found["remedy"])
    result: dict[str, Any] = document["ok"]
    return result
