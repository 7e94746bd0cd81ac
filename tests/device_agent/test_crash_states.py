"""A sample of what `python -m tests.device_agent.crash` does in full: crash states from a trace, kills, failing system calls."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device_agent.crash import trace
from tests.device_agent.crash.disk import Disk, Image, Naming, Resize, Write, digest, read_tree
from tests.device_agent.crash.injection import Fault, environment, judge_fault
from tests.device_agent.crash.judge import (
    Bricked,
    Scenario,
    crash_states,
    judge,
    spool_scenario,
    update_scenario,
)

WHY_NOT = trace.missing()
traced = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")
SAMPLE = 150


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # recovery logs what it mends, state after state
    yield
    logging.disable(logging.NOTSET)


def _make(name: str, folder: Path) -> Scenario:
    return spool_scenario(folder) if name == "spool" else update_scenario(folder, delta=name == "delta")


@traced
@pytest.mark.parametrize("name", ("full", "delta", "spool"))
def test_crash_states(tmp_path: Path, name: str) -> None:
    scenario = _make(name, tmp_path)
    disk = Disk(scenario.root)
    calls = trace.record(scenario.command, tmp_path / "trace.txt", env=environment())
    states = list(crash_states(disk, calls))
    # The replay is a file system that nobody would trust if it did not end where the real one did.
    assert digest(_without_index(disk.tree(disk.now))) == digest(_without_index(read_tree(scenario.root)))
    assert len(states) > 300
    for state in states[:: max(1, len(states) // SAMPLE)]:
        judge(scenario, state, tmp_path / "work")


def _without_index(tree: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """SQLite writes its shared memory by mmap, which no trace shows, and rebuilds it."""
    return {path: data for path, data in tree.items() if not path.endswith("-shm")}


@traced
@pytest.mark.parametrize("name", ("full", "spool"))
def test_without_fsync_the_same_judge_finds_the_damage(tmp_path: Path, name: str) -> None:
    scenario = _make(name, tmp_path)
    disk = Disk(scenario.root)
    calls = trace.record(scenario.command, tmp_path / "trace.txt", env=environment())
    careless = [call for call in calls if call.name not in ("fsync", "fdatasync")]
    broken = 0
    for state in itertools.islice(crash_states(disk, careless, exhaustive=0, samples=2, pairs=False), 0, 4000, 10):
        try:
            judge(scenario, state, tmp_path / "work")
        except Bricked:
            broken += 1
            if broken > 2:
                return
    raise AssertionError("states that no fsync prevents were all survived: the judge sees nothing")


@traced
@pytest.mark.parametrize(
    ("name", "fault"),
    (
        ("full", Fault("rename", 9, "signal=SIGKILL")),
        ("full", Fault("fsync", 20, "signal=SIGKILL")),
        ("full", Fault("write", 12, "error=ENOSPC")),
        ("full", Fault("fsync", 15, "error=EIO")),
        ("spool", Fault("pwrite64", 20, "signal=SIGKILL")),
        ("spool", Fault("fdatasync", 6, "error=EIO")),
        ("spool", Fault("pwrite64", 25, "error=ENOSPC")),
    ),
)
def test_faults(tmp_path: Path, name: str, fault: Fault) -> None:
    scenario = _make(name, tmp_path)
    shutil.copytree(scenario.root, tmp_path / "pristine", symlinks=True)
    ended_badly = judge_fault(scenario, fault, tmp_path / "pristine", tmp_path / "work")
    assert ended_badly or "SIGKILL" not in fault.what


def test_what_is_pending_may_be_lost_and_what_is_synced_may_not() -> None:
    image = Image()
    image.bytes_of[1] = b""
    image.apply(Naming((((0, "file"), 1),)))
    image.apply(Write(1, 2, b"ab"))
    assert image.bytes_of[1] == b"\0\0ab"
    image.apply(Resize(1, 3))
    assert image.bytes_of[1] == b"\0\0a"
    image.apply(Naming((((0, "file"), None), ((0, "other"), 1))))
    assert image.names == {(0, "other"): 1}


def test_a_call_that_is_not_understood_stops_the_proof(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with pytest.raises(trace.TraceError, match="not modelled"):
        disk.replay(trace.Call("copy_file_range", (f"3<{tmp_path}/a>", "NULL"), 1, None))
