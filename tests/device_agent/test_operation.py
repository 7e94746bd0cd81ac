"""What an operator does and sees: logs, bundles, status, health as file and endpoint, the watchdog, and who owns the data."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import device_agent
from device_agent import cli
from device_agent.config import AgentConfig, LogConfig
from device_agent.logs import FILE, OLDER, JsonLines, read_logs, set_up
from device_agent.service import Service
from device_agent.store import confirm, store_for
from device_agent.update import update_all
from tests.device_agent.conftest import make_config
from tests.device_agent.test_cli import agent
from tests.simulators.repository import MODEL, RepositorySimulator

PACKAGING = Path(device_agent.__file__).parent / "packaging"


def make_bundle(repository: RepositorySimulator, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(repository.folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(repository.folder).as_posix())
    return path


def test_bundles_install_without_a_network_and_logs_tell(repository: RepositorySimulator, tmp_path: Path) -> None:
    config = make_config(tmp_path / "device", "http://127.0.0.1:9")
    toml = tmp_path / "device" / "agent.toml"
    repository.publish("r1")
    bundle = make_bundle(repository, tmp_path / "one.zip")
    assert agent("bundle", "install", bundle, "--config", toml).returncode == 2, "no root of trust yet"
    done = agent("bundle", "install", bundle, "--root", repository.root, "--config", toml, "--json")
    assert json.loads(done.stdout)["results"][0]["outcome"] == "activated", done.stderr
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=5.0)
    again = agent("install", make_bundle(repository, tmp_path / "two.zip"), "--config", toml, "--json")
    assert json.loads(again.stdout)["results"][0]["release"] == "r2", again.stderr
    assert agent("bundle", "install", tmp_path / "none.zip", "--config", toml).returncode == 2
    document = json.loads(agent("logs", "--config", toml, "--json", "--level", "info").stdout)
    said = [line["message"] for line in document["lines"]]
    assert any("r1" in line and "active" in line for line in said) and any("r2" in line for line in said)
    assert document["schema"] == "edgewright.agent-logs/1" and all(line["time"] > 0 for line in document["lines"])
    text = agent("logs", "--config", toml, "-n", "1").stdout.strip()
    assert len(text.splitlines()) == 1 and "r2" in text


def test_every_command_prints_one_document(repository: RepositorySimulator, tmp_path: Path) -> None:
    config = make_config(tmp_path / "device", str(repository.folder))
    bundle, x = tmp_path / "one.zip", tmp_path / "x.npz"
    np.savez(x, x=np.ones((1, 4), np.float32))
    repository.publish("r1")
    make_bundle(repository, bundle)
    told = ("--config", tmp_path / "device" / "agent.toml", "--json")

    def document(schema: str, *words: str | Path) -> dict[str, Any]:
        done = agent(*words, *told)
        found: dict[str, Any] = json.loads(done.stdout)
        assert (done.returncode, found["schema"]) == (0, f"edgewright.{schema}/1"), done.stderr
        return found

    installed = document("agent-update", "bundle", "install", bundle, "--root", repository.root)
    assert installed["results"][0]["outcome"] == "activated"
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=5.0)
    assert document("agent-update", "update")["results"][0]["release"] == "r2"
    assert document("agent-update", "install")["results"][0]["outcome"] == "current"
    assert document("agent-status", "status")["models"][MODEL]["active"]["release"] == "r2"
    assert document("agent-infer", "infer", "--inputs", x, "-o", tmp_path / "y.npz")["release"] == "r2"
    assert document("agent-rollback", "rollback")["release"] == "r1"
    assert document("agent-doctor", "doctor")["ok"]
    assert document("agent-logs", "logs")["lines"]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield logging.getLogger("device_agent.test")
    root.handlers[:] = before
    root.setLevel(level)


def test_the_log_file_is_bounded_and_levels_are_kept(tmp_path: Path, logger: logging.Logger) -> None:
    set_up(LogConfig(level="warning", keep_bytes=4096), tmp_path)
    logger.info("not said")
    for number in range(200):
        logger.warning("line %d", number, extra={"model": "toy"})
    sizes = [(tmp_path / name).stat().st_size for name in (FILE, OLDER)]
    assert max(sizes) <= 2048 + 200
    found = read_logs(tmp_path, last=3)
    assert [line["message"] for line in found] == ["line 197", "line 198", "line 199"] and found[0]["model"] == "toy"
    assert not read_logs(tmp_path, last=3, level="error") and not read_logs(tmp_path, last=0)


def test_a_line_holds_the_trace_and_is_one_line(tmp_path: Path, logger: logging.Logger) -> None:
    set_up(LogConfig(), tmp_path)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logger.exception("it broke\nbadly")
    logger.error("long %s", "x" * 10_000)
    broke, long = read_logs(tmp_path, last=2)
    assert broke["message"] == "it broke\nbadly" and "ValueError: first" in broke["trace"]
    assert long["message"].startswith("long xxx") and len(long["message"]) <= 2000
    record = logging.makeLogRecord({"msg": "m", "levelname": "INFO", "thing": {1}})
    assert json.loads(JsonLines().format(record))["thing"] == "{1}"


def test_logs_go_on_when_the_disk_does_not(tmp_path: Path, logger: logging.Logger) -> None:
    (tmp_path / FILE).mkdir()
    set_up(LogConfig(), tmp_path)
    logger.error("said on standard error all the same")
    assert read_logs(tmp_path, last=5) == []


@pytest.fixture
def running(repository: RepositorySimulator, config: AgentConfig) -> Iterator[Service]:
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    service = Service(config.model_copy(update={"repository": None}), config.data_dir.parent / "agent.toml")
    runner = threading.Thread(target=service.run)
    runner.start()
    deadline = time.monotonic() + 20
    while not (config.data_dir / "health.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield service
    service.stop()
    runner.join(20)


def test_health_as_a_file_and_as_an_endpoint(running: Service) -> None:
    with urllib.request.urlopen(f"{running.server.where()}/health", timeout=10) as answer:
        document = json.load(answer)
    assert document["healthy"] and document["models"][MODEL]["release"] == "r1"
    kept = json.loads((running.config.data_dir / "health.json").read_text())
    assert kept["healthy"] and abs(kept["time"] - time.time()) < 60
    from device_agent.api import describe_status

    assert describe_status(running.config)["health"]["models"][MODEL]["ready"]


def test_a_refused_body_is_counted_and_a_deadline_is_504(running: Service) -> None:
    def post(body: bytes) -> int:
        request = urllib.request.Request(f"{running.server.where()}/v2/models/{MODEL}/infer", body)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return int(error.code)

    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0] * 4}]
    assert post(b"no json") == 400
    assert post(json.dumps({"inputs": inputs, "parameters": {"timeout": "soon"}}).encode()) == 400
    assert post(json.dumps({"inputs": inputs, "parameters": {"timeout": 1}}).encode()) == 504  # a microsecond
    assert post(json.dumps({"inputs": inputs, "parameters": {"timeout": 10_000_000}}).encode()) == 200
    health = running.engine.health(MODEL)
    assert health is not None and (health[1].refused, health[1].shed, health[1].ok) == (2, 1, 1)


def test_a_run_that_hangs_is_not_hidden_from_the_watchdog(
    repository: RepositorySimulator, config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.publish("r1")
    update_all(config)
    health = config.health.model_copy(update={"stuck_s": 0.05})
    service = Service(config.model_copy(update={"repository": None, "health": health}), tmp_path / "agent.toml")
    service.engine.load()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(0.2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        service._feed_watchdog()
        assert systemd.recv(100) == b"WATCHDOG=1"
        pool = service.engine._loaded[MODEL].chain._steps[0].pool
        assert pool is not None
        pool._begun[1] = time.monotonic() - 1.0  # a run began a second ago and is still out
        service._feed_watchdog()
        with pytest.raises(TimeoutError):
            systemd.recv(100)
        del pool._begun[1]
        service._feed_watchdog()
        assert systemd.recv(100) == b"WATCHDOG=1"
    service.engine.close()
    service.spool.close()


def test_the_short_way_into_run_says_what_is_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "device_agent.main", "run", "--config", str(tmp_path / "none.toml")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "->" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_root_becomes_the_owner_of_the_data(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 1234, 1235)
    script = (
        "import os, sys; from pathlib import Path; from device_agent.cli import _become_owner\n"
        "_become_owner(Path(sys.argv[1])); print(os.geteuid(), os.getegid(), os.getgroups())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1234", "1235", "[]"], done.stderr
    cli._become_owner(tmp_path / "none")
    cli._become_owner(tmp_path)
    assert os.geteuid() == 0


def test_the_shipped_configuration_is_valid(tmp_path: Path) -> None:
    from device_agent.config import load_config

    shutil.copy(PACKAGING / "agent.toml", tmp_path)
    config = load_config(tmp_path / "agent.toml")
    assert config.data_dir == Path("/var/lib/edgewright") and config.logs.format == "json"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    unit = tmp_path / "edgewright-agent.service"
    # verify wants the program to exist; what it is does not matter to it
    text = (
        (PACKAGING / "edgewright-agent.service")
        .read_text()
        .replace("/opt/edgewright/bin/edgewright-agent", "/bin/true")
    )
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert "edgewright" not in done.stderr, done.stderr
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "unrecognized" in done.stderr or "nknown" in done.stderr:
        pytest.skip("this systemd-analyze rates no unit files")
    assert done.returncode == 0, done.stdout[-500:]  # 2.0 of 10 or less: systemd calls that OK


def test_the_install_script_is_plain_sh() -> None:
    done = subprocess.run(["sh", "-n", str(PACKAGING / "install.sh")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(["sh", str(PACKAGING / "install.sh"), "--help"], capture_output=True, text=True, timeout=60)
    assert "--find-links" in shown.stdout and "set -eu" not in shown.stdout
    wrong = subprocess.run(
        ["sh", str(PACKAGING / "install.sh"), "--colour"], capture_output=True, text=True, timeout=60
    )
    assert wrong.returncode == 2


def test_infer_prints_json_and_names_the_release(
    repository: RepositorySimulator, config: AgentConfig, tmp_path: Path
) -> None:
    repository.publish("r1")
    update_all(config)
    np.savez(tmp_path / "x.npz", x=np.ones((1, 4), np.float32))
    toml = config.data_dir.parent / "agent.toml"
    done = agent("infer", "--config", toml, "--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--json")
    document: dict[str, Any] = json.loads(done.stdout)
    assert document == {"schema": "edgewright.agent-infer/1", "model": MODEL, "release": "r1", "outputs": {"y": [1, 4]}}
