"""Every file that the agent keeps, deleted, zeroed, truncated and bit-flipped: a verified model answers, with no surprise."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from device_agent import update as update_module
from device_agent.alerts import Alert, Alerts
from device_agent.api import describe_status
from device_agent.config import AgentConfig, device_id
from device_agent.engine import Engine
from device_agent.health_report import HealthFile
from device_agent.logs import read_logs
from device_agent.spool import Spool
from device_agent.store import confirm, store_for
from device_agent.trial import Verdict
from device_agent.trust import provision
from device_agent.update import TRUST_FOLDER, update_all
from profiles.errors import EdgewrightError
from tests.device_agent.conftest import make_config
from tests.simulators.repository import MODEL, RepositorySimulator

X = {"x": np.ones((1, 4), np.float32)}
ANSWERS = {3.0: "r1", 6.0: "r2"}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "bit-flipped": _flip,
}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[AgentConfig, Path]:
    """A device that has seen everything: r1 confirmed, r2 on probation, alerts, events, health. And a copy of its data."""
    folder = tmp_path_factory.mktemp("lived")
    repository = RepositorySimulator(folder / "repository")
    config = make_config(folder / "device", str(repository.folder))
    config = config.model_copy(update={"device_id": None})
    provision(config.data_dir / TRUST_FOLDER, repository.root.read_bytes())
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=5.0)
    update_all(config)
    device_id(config)
    Alerts(config.data_dir).update([Alert("toy/r2", "failed share", "critical", 0.5)])
    spool = Spool(config.data_dir / "spool.db", max_bytes=1 << 20)
    spool.put({"kind": "event", "time": 1, "name": "x", "severity": "info", "attr": {}})
    spool.flush()
    shutil.copy(config.data_dir / "spool.db-wal", folder / "wal")
    spool.close()
    (config.data_dir / "agent.log").write_text('{"time": 1, "level": "info", "message": "hello"}\n')
    with Engine(config) as engine:
        engine.load()
        HealthFile(config.data_dir).write(engine, 0.0)
    kept = folder / "kept"
    shutil.copytree(config.data_dir, kept)
    return config, kept


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    monkeypatch.setattr(update_module, "run_trial", lambda *a, **k: Verdict())
    yield
    logging.disable(logging.NOTSET)


def _restored(lived: tuple[AgentConfig, Path]) -> AgentConfig:
    config, kept = lived
    shutil.rmtree(config.data_dir)
    shutil.copytree(kept, config.data_dir)
    return config


def _answer(config: AgentConfig) -> str:
    store_for(config.data_dir, MODEL).recover()
    with Engine(config) as engine:
        engine.load()
        return ANSWERS[float(engine.infer(MODEL, X)["y"][0, 0])]


def _files(kept: Path) -> list[Path]:
    return sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_any_one_file(lived: tuple[AgentConfig, Path], damage: str) -> None:
    files = _files(lived[1])
    assert len(files) > 20, files
    for relative in files:
        config = _restored(lived)
        DAMAGE[damage](config.data_dir / relative)
        assert _answer(config) in ("r1", "r2"), f"{relative} {damage}"
        _nothing_surprises(config, relative)


def _nothing_surprises(config: AgentConfig, damaged: Path) -> None:
    """Everything else that reads these files goes on, or says in words what to do."""
    spool = Spool(config.data_dir / "spool.db", max_bytes=1 << 20)
    spool.put({"kind": "event", "n": 1})
    spool.flush()
    assert spool.batch(10)[-1].record["n"] == 1, damaged
    spool.close()
    assert len(device_id(config)) == 32
    document = describe_status(config)
    assert document["models"][MODEL]["active"]["release"] in ("r1", "r2")
    read_logs(config.data_dir, last=10)
    if damaged.parts[0] != TRUST_FOLDER and "models" not in damaged.parts:
        return
    try:
        update_all(config)
    except EdgewrightError as error:
        # Only the root of trust cannot be made anew from what is there: someone has to bring it.
        assert damaged.parts[0] == TRUST_FOLDER and error.remedy, f"{damaged}: {error}"
    state = store_for(config.data_dir, MODEL).load()
    assert state.active is not None and state.active.release in ("r1", "r2")


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_both_copies_of_the_state(lived: tuple[AgentConfig, Path], damage: str) -> None:
    config = _restored(lived)
    for name in ("state.json", "state.bak.json"):
        DAMAGE[damage](config.data_dir / "models" / MODEL / name)
    assert _answer(config) == "r1", "of two whole slots the confirmed one is sure"
