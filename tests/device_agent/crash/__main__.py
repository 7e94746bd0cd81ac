"""`python -m tests.device_agent.crash`: every crash state and every injected fault; the README states the count.

--every N judges each N-th state and fault only. The exit code is 1 if a promise was broken anywhere.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.device_agent.crash.disk import Disk
from tests.device_agent.crash.injection import ERRORS, count_calls, environment, faults, judge_fault
from tests.device_agent.crash.judge import Bricked, Scenario, crash_states, judge, scenarios
from tests.device_agent.crash.trace import missing, record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.device_agent.crash", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="judge each N-th only")
    every = parser.parse_args(arguments).every
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    logging.disable(logging.CRITICAL)  # recovery has much to say about each state
    start, total, killed, failed = time.monotonic(), 0, 0, 0
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgewright-crash-") as folder:
        for scenario in scenarios(Path(folder)):
            found, bad = _states(scenario, Path(folder), every)
            kills, more = _faults(scenario, Path(folder), ("signal=SIGKILL",), every)
            errors, others = _faults(scenario, Path(folder), tuple(f"error={name}" for name in ERRORS), every)
            total, killed, failed = total + found, killed + kills, failed + errors
            broken += [*bad, *more, *others]
            print(f"{scenario.name}: {found} crash states, {kills} kills, {errors} failing calls", flush=True)
    lost = sum("acknowledged" in text for text in broken)
    for text in broken:
        print(text)
    print(
        f"{total} crash states, {killed} kills and {failed} failing system calls: {len(broken) - lost} bricks, "
        f"{lost} times acknowledged records lost ({time.monotonic() - start:.0f} s)"
    )
    return 1 if broken else 0


def _states(scenario: Scenario, folder: Path, every: int) -> tuple[int, list[str]]:
    pristine = _kept(scenario, folder)
    disk = Disk(scenario.root)
    calls = record(scenario.command, folder / "trace.txt", env=environment())
    judged, broken = 0, []
    for number, state in enumerate(crash_states(disk, calls)):
        if number % every:
            continue
        judged += 1
        try:
            judge(scenario, state, folder / "work")
        except Bricked as error:
            broken.append(f"{scenario.name}, state {number}: {error}")
    _restore(scenario, pristine)
    return judged, broken


def _faults(scenario: Scenario, folder: Path, kinds: Sequence[str], every: int) -> tuple[int, list[str]]:
    pristine = _kept(scenario, folder)
    counts = count_calls(scenario, folder)
    _restore(scenario, pristine)
    reached, broken = 0, []
    for fault in (fault for kind in kinds for fault in faults(counts, kind, every)):
        try:
            reached += judge_fault(scenario, fault, pristine, folder / "work")
        except Bricked as error:
            broken.append(f"{scenario.name}, {fault}: {error}")
    _restore(scenario, pristine)
    return reached, broken


def _kept(scenario: Scenario, folder: Path) -> Path:
    pristine = folder / "pristine"
    shutil.rmtree(pristine, ignore_errors=True)
    shutil.copytree(scenario.root, pristine, symlinks=True)
    return pristine


def _restore(scenario: Scenario, pristine: Path) -> None:
    shutil.rmtree(scenario.root)
    shutil.copytree(pristine, scenario.root, symlinks=True)


if __name__ == "__main__":
    raise SystemExit(main())
