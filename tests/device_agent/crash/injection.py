"""Runs the real agent with one system call killed or failing, by strace's fault injection, and judges what it left."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.device_agent.crash.disk import read_tree
from tests.device_agent.crash.judge import CrashState, Scenario, judge

# Calls by which anything becomes persistent, each counted for itself.
PERSISTENT = ("write", "pwrite64", "fsync", "fdatasync", "rename", "link", "unlink", "unlinkat", "mkdir", "ftruncate")
ERRORS = ("ENOSPC", "EIO")
TIMEOUT_S = 60.0
_ACK = re.compile(r"ack (\d+)")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at the ``when``-th call of ``call``: ``what`` is "signal=SIGKILL" or "error=NAME"."""

    call: str
    when: int
    what: str

    def __str__(self) -> str:
        return f"{self.what} at {self.call} number {self.when}"


def environment() -> dict[str, str]:
    """Without the writes of Python itself."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def run_with(scenario: Scenario, fault: Fault) -> tuple[int, int]:
    """Run the scenario's command in place; returns its exit code and the number of acknowledged records."""
    inject = f"inject={fault.call}:{fault.what}:when={fault.when}"
    # Without --seccomp-bpf: with it, strace 6.1 injects errors and no signals.
    command = ["strace", "-f", "-o", os.devnull, "-e", f"trace={fault.call}", "-e", inject]
    done = subprocess.run(
        [*command, *scenario.command], env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    found = _ACK.findall(done.stdout)
    return done.returncode, int(found[-1]) if found else 0


def judge_fault(scenario: Scenario, fault: Fault, pristine: Path, workplace: Path) -> bool:
    """Put the folder back as it was in ``pristine``, run with the fault, judge a copy of the result.

    Returns:
        Whether the fault was reached: False says that the command makes fewer such calls.

    Raises:
        Bricked: the promise is broken.
    """
    shutil.rmtree(scenario.root)
    shutil.copytree(pristine, scenario.root, symlinks=True)
    code, acknowledged = run_with(scenario, fault)
    judge(scenario, CrashState(read_tree(scenario.root), acknowledged), workplace)
    return code != 0


def count_calls(scenario: Scenario, folder: Path) -> dict[str, int]:
    """How often the command makes each of PERSISTENT, all its processes together."""
    out = folder / "count.txt"
    calls = ",".join(PERSISTENT)
    command = ["strace", "-f", "--seccomp-bpf", "-o", str(out), "-e", f"trace={calls}", *scenario.command]
    subprocess.run(command, env=environment(), capture_output=True, check=True, timeout=TIMEOUT_S)
    names = re.findall(r"^\d+\s+(\w+)\(", out.read_text("utf-8", "replace"), re.MULTILINE)
    return {call: names.count(call) for call in PERSISTENT}


def faults(counts: dict[str, int], what: str, every: int = 1) -> Iterator[Fault]:
    """One fault per call, or per ``every``-th call, each kind of call at least once."""
    for call, count in counts.items():
        for when in range(1, count + 1, every):
            yield Fault(call, when, what)
