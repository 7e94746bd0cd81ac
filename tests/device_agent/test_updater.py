"""The updater beside the service: a process that comes on time and goes, and whose failure stops nothing."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from device_agent.config import AgentConfig
from device_agent.service import Service
from device_agent.store import store_for
from tests.simulators.repository import MODEL, WIDTH, RepositorySimulator


@pytest.fixture
def service(config: AgentConfig, tmp_path: Path) -> Iterator[Service]:
    made = Service(config, tmp_path / "device" / "agent.toml")
    yield made
    if made._child is not None:
        made._child.kill()
        made._child.wait()
    made.engine.close()
    made.spool.close()


def ended(service: Service) -> int:
    """The status of the updater that was started."""
    assert service._child is not None
    return service._child.wait(60)


def test_an_update_comes_in_a_process_of_its_own_which_then_is_gone(
    service: Service, repository: RepositorySimulator, config: AgentConfig
) -> None:
    repository.publish("r1")
    service.tick()
    assert ended(service) == 0
    assert store_for(config.data_dir, MODEL).load().active is not None
    service.tick()
    assert service._child is None, "nothing stays, and the next one is not due"
    assert float(service.engine.infer(MODEL, {"x": np.ones((1, WIDTH), np.float32)})["y"][0, 0]) == 3.0


def test_an_updater_that_fails_is_told_and_stops_nothing(service: Service, repository: RepositorySimulator) -> None:
    (repository.folder / "metadata" / "timestamp.json").unlink(missing_ok=True)
    service.tick()
    assert ended(service) != 0
    service.tick()
    service.spool.flush()
    batch = service.spool.next_batch(10)
    assert batch is not None and "update.failed" in [stored.record.get("name") for stored in batch.records]


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1.0])
def test_the_pause_is_the_interval_and_a_share_at_random(
    service: Service, config: AgentConfig, monkeypatch: pytest.MonkeyPatch, drawn: float
) -> None:
    started: list[list[str]] = []

    class Child:
        returncode = 0

        def __init__(self, command: list[str], **_: object) -> None:
            started.append(command)

        def poll(self) -> int:
            return 0

        def kill(self) -> None:
            pass

        def wait(self) -> int:
            return 0

    now = [1000.0]
    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setattr(random, "random", lambda: drawn)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pause = config.update.interval_s * (1 + config.update.jitter * drawn)
    for moment, expected in ((0.0, 1), (pause - 1, 1), (pause, 2), (2 * pause - 1, 2), (2 * pause, 3)):
        now[0] = 1000.0 + moment
        service._update()
        assert len(started) == expected
    assert "update" in started[0]
