"""What must hold on a device after any crash, and the two scenarios that are cut."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.publish.delta import encode_delta
from device_agent import update as update_module
from device_agent.config import AgentConfig
from device_agent.spool import Spool
from device_agent.store import confirm, store_for
from device_agent.trial import Verdict
from device_agent.trust import provision
from device_agent.update import TRUST_FOLDER, update_all
from tests.device_agent.conftest import make_config
from tests.device_agent.crash.disk import Disk, Tree, digest, read_tree, write_tree
from tests.device_agent.crash.trace import Call, raw_bytes
from tests.simulators.repository import MODEL, RepositorySimulator, toy_model

ACTOR = "tests.device_agent.crash.actor"
RECORDS = 12
_ACK = re.compile(rb"ack (\d+)")


class Bricked(AssertionError):
    """A crash state from which the device does not recover as promised."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that the agent does, the folder that holds its state, and what must hold afterwards.

    ``check(folder, acknowledged)`` looks at a copy of the folder as a crash left it, recovers, and raises Bricked.
    """

    name: str
    root: Path
    command: tuple[str, ...]
    check: Callable[[Path, int], None]


def update_scenario(folder: Path, *, delta: bool) -> Scenario:
    """A device that runs r1, confirmed, and is about to take r2, in full or as a delta."""
    repository = RepositorySimulator(folder / "repository")
    config = make_config(folder / "device", str(repository.folder))
    provision(config.data_dir / TRUST_FOLDER, repository.root.read_bytes())
    ballast = (
        np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    )  # or a delta is larger than the artifact
    repository.publish("r1", toy_model(2.0, 1.0, ballast=ballast))
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    patch = None
    if delta:
        old, new = folder / "old.onnx", folder / "new.onnx"
        old.write_bytes(repository.artifacts["r1"])
        new.write_bytes(toy_model(5.0, 1.0, ballast=ballast))
        encode_delta(old, new, folder / "patch")
        patch = ("r1", (folder / "patch").read_bytes())
    repository.publish("r2", toy_model(5.0, 1.0, ballast=ballast), w=5.0, delta=patch)
    signed = {name: hashlib.sha256(data).hexdigest() for name, data in repository.artifacts.items()}
    path = folder / "device" / "agent.toml"

    def check(state: Path, acknowledged: int) -> None:
        _check_device(config.model_copy(update={"data_dir": state}), signed)

    name = "update by delta" if delta else "update in full"
    return Scenario(name, config.data_dir, (sys.executable, "-m", ACTOR, "update", str(path)), check)


def spool_scenario(folder: Path) -> Scenario:
    """Telemetry records on their way to the disk."""
    root = folder / "telemetry"
    root.mkdir(parents=True)

    def check(state: Path, acknowledged: int) -> None:
        _check_spool(state / "spool.db", acknowledged)

    command = (sys.executable, "-m", ACTOR, "spool", str(root / "spool.db"), str(RECORDS))
    return Scenario("telemetry spool", root, command, check)


def scenarios(folder: Path) -> Iterator[Scenario]:
    yield update_scenario(folder / "full", delta=False)
    yield update_scenario(folder / "delta", delta=True)
    yield spool_scenario(folder)


def _check_device(config: AgentConfig, signed: dict[str, str]) -> None:
    """A verified model is active at once, and a second run of the update ends at r2."""
    store = store_for(config.data_dir, MODEL)
    state = store.recover()
    _check_active(config, signed)
    if state.active is not None and state.active.release == "r2" and not store._marked(state.active.slot, "passed"):
        raise Bricked("r2 is active and its trial was never passed")
    real, update_module.run_trial = update_module.run_trial, lambda *a, **k: Verdict()
    try:
        update_all(config)
    finally:
        update_module.run_trial = real
    if _check_active(config, signed) != "r2":
        raise Bricked("a second run does not reach r2")


def _check_active(config: AgentConfig, signed: dict[str, str]) -> str:
    store = store_for(config.data_dir, MODEL)
    ref = store.load().active
    if ref is None:
        raise Bricked("no model is active")
    if store.check(ref.slot) != ref:
        raise Bricked(f"slot {ref.slot} is active and not whole")
    found = hashlib.sha256(store.artifact(ref).read_bytes()).hexdigest()
    if found != signed[ref.release]:
        raise Bricked(f"the active artifact is not the signed one of {ref.release}")
    return ref.release


def _check_spool(path: Path, acknowledged: int) -> None:
    queue = Spool(path, max_bytes=1 << 20)
    try:
        numbers = {int(stored.record["number"]) for stored in queue.batch(10_000)}
        lost = set(range(acknowledged)) - numbers
        if lost:
            raise Bricked(f"{len(lost)} of {acknowledged} acknowledged records are lost")
        queue.put({"number": RECORDS})
        queue.flush()
        if queue.stats()["records"] != len(numbers) + 1:
            raise Bricked("no new record can be kept")
    finally:
        queue.close()


@dataclass(frozen=True, slots=True)
class CrashState:
    """What the disk may hold after a power cut, and how many records had been acknowledged by then."""

    tree: Tree
    acknowledged: int


def crash_states(
    disk: Disk, calls: Sequence[Call], *, exhaustive: int = 6, samples: int = 8, pairs: bool = True
) -> Iterator[CrashState]:
    """Every state that differs, in the order of the calls; see ``Disk.after_crash``.

    Args:
        disk: the folder before the first call.
    """
    seen: set[tuple[str, int]] = set()
    acknowledged = 0
    for call in calls:
        if call.name == "write" and call.args[0].startswith("1<"):
            found = _ACK.search(raw_bytes(call.args[1]))
            acknowledged = int(found[1]) if found else acknowledged
        if not disk.replay(call):
            continue
        for tree in disk.after_crash(exhaustive=exhaustive, samples=samples, pairs=pairs):
            key = digest(tree), acknowledged
            if key not in seen:
                seen.add(key)
                yield CrashState(tree, acknowledged)


def judge(scenario: Scenario, state: CrashState, workplace: Path) -> None:
    """Make the state real and hold the scenario's promise against it. Raises Bricked."""
    shutil.rmtree(workplace, ignore_errors=True)
    write_tree(state.tree, workplace)
    try:
        scenario.check(workplace, state.acknowledged)
    except Bricked:
        raise
    except Exception as error:  # whatever recovery raises is a device that does not come up again
        raise Bricked(f"{type(error).__name__}: {error}") from error


def whole_copy(folder: Path) -> Tree:
    """A folder as a state."""
    return read_tree(folder)
