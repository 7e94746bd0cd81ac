"""Each thing that can be wrong is found, named, and has a way out; a well device has none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from device_agent import doctor
from device_agent.config import AgentConfig
from device_agent.doctor import Finding, examine
from device_agent.spool import Spool
from device_agent.store import confirm, store_for
from device_agent.update import update_all
from tests.device_agent.test_cli import agent
from tests.simulators.repository import MODEL, RepositorySimulator, toy_nan


@pytest.fixture
def well(repository: RepositorySimulator, config: AgentConfig) -> AgentConfig:
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    return config


def found(config: AgentConfig, what: str) -> list[Finding]:
    return [finding for finding in examine(config) if finding.what == what]


def test_a_well_device(well: AgentConfig) -> None:
    findings = examine(well)
    assert {finding.grade for finding in findings} == {"ok"}
    assert not any(finding.remedy for finding in findings)


def test_a_device_without_anything(config: AgentConfig) -> None:
    shutil.rmtree(config.data_dir)
    grades = {finding.what: finding.grade for finding in examine(config)}
    assert grades["data folder"] == "warning" and grades["root of trust"] == "problem"
    assert grades[f"model {MODEL}"] == "problem"


def test_a_damaged_release(well: AgentConfig) -> None:
    store = store_for(well.data_dir, MODEL)
    active = store.load().active
    assert active is not None
    store.artifact(active).write_bytes(b"rotten")
    (finding,) = found(well, f"model {MODEL}")
    assert finding.grade == "problem" and "damaged" in finding.detail


def test_a_refused_release_is_told(repository: RepositorySimulator, well: AgentConfig) -> None:
    repository.publish("r2", toy_nan())
    update_all(well)
    first, second = found(well, f"model {MODEL}")
    assert (first.grade, second.grade) == ("warning", "ok") and "r2 was refused" in first.detail


def test_no_repository_no_space_no_clock(well: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = well.model_copy(update={"repository": str(well.data_dir / "gone")})
    assert found(gone, "repository")[0].grade == "warning"
    greedy = well.model_copy(update={"update": well.update.model_copy(update={"reserve_bytes": 1 << 60})})
    assert found(greedy, "free space")[0].grade == "problem"
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    assert found(well, "clock")[0].grade == "problem"


def test_a_damaged_spool(well: AgentConfig) -> None:
    path = well.data_dir / "spool.db"
    spool = Spool(path, max_bytes=1 << 20)
    spool.put({"kind": "event"})
    spool.close()
    assert found(well, "telemetry spool")[0].detail == "1 records wait"
    path.write_bytes(b"not a database" * 100)
    assert found(well, "telemetry spool")[0].grade == "problem"


def test_the_command(well: AgentConfig, tmp_path: Path) -> None:
    toml = tmp_path / "device" / "agent.toml"
    done = agent("doctor", "--config", toml, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ok"], done.stderr
    store_for(well.data_dir, MODEL).save(store_for(well.data_dir, "none").load())
    done = agent("doctor", "--config", toml)
    assert done.returncode == 1 and "-> Run edgewright-agent update." in done.stdout
