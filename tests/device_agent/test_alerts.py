"""Alerts: levels from histograms and counts, events on change only, kept for status; and the service under systemd's protocol."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from device_agent.alerts import FILE, Alert, Alerts, error_alert, latency_alert, percentile, read_alerts
from device_agent.api import describe_status
from device_agent.config import AgentConfig
from device_agent.spool import Spool
from device_agent.telemetry import LATENCY_BOUNDS_MS, Telemetry
from device_agent.update import update_all
from tests.simulators.repository import RepositorySimulator


@pytest.mark.parametrize(("ms", "level"), [(20.0, "ok"), (180.0, "warning"), (400.0, "critical")])
def test_latency_is_judged_at_its_95th_percentile(ms: float, level: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 20)
    telemetry = Telemetry(spool)
    for number in range(1000):
        slow = number % 10 == 0  # one in ten
        telemetry.request("net", "1", "ok", int((ms if slow else 1.0) * 1e6))
    (found,) = [alert for alert in telemetry.flush() if alert.quantity == "latency p95 ms"]
    assert found.subject == "net/1" and found.level == level, found
    assert telemetry.flush() == []
    spool.close()


def test_percentiles_are_linear_within_a_bucket() -> None:
    assert percentile((10.0, 20.0), (0, 100, 0), 0.5) == 15.0
    assert percentile((10.0, 20.0), (0, 0, 5), 0.95) == 20.0
    assert latency_alert("a/1", LATENCY_BOUNDS_MS, [1]) is None, "one request is no percentile"


@pytest.mark.parametrize(("failed", "level"), [(0, "ok"), (2, "warning"), (11, "critical")])
def test_errors_are_judged_by_share(failed: int, level: str) -> None:
    found = error_alert("a/1", {"ok": 1000 - failed, "failed": failed, "refused": 500})
    assert found is not None and found.level == level


def test_only_changes_are_events_and_status_shows_what_is_raised(config: AgentConfig) -> None:
    config.data_dir.mkdir(parents=True, exist_ok=True)
    alerts = Alerts(config.data_dir)
    bad, good = Alert("net/1", "drift of input:x", "critical", 0.4), Alert("net/1", "drift of input:x", "ok", 0.01)
    assert alerts.update([good]) == []
    assert alerts.update([bad]) == [bad] and alerts.update([bad]) == []
    assert describe_status(config)["alerts"][0]["level"] == "critical"
    again = Alerts(config.data_dir)
    assert again.update([bad]) == [], "a restart is no change"
    assert again.update([good]) == [good] and read_alerts(config.data_dir) == []
    (config.data_dir / FILE).write_bytes(b"\0\xff not json")
    assert read_alerts(config.data_dir) == [] and Alerts(config.data_dir).update([bad]) == [bad]


def _messages(sink: socket.socket, until: str, seconds: float = 20.0) -> list[str]:
    seen: list[str] = []
    deadline = time.monotonic() + seconds
    while until not in seen and time.monotonic() < deadline:
        seen.append(sink.recv(256).decode())
    return seen


def test_the_service_speaks_to_systemd_and_ends_cleanly(
    repository: RepositorySimulator, config: AgentConfig, tmp_path: Path
) -> None:
    repository.publish("r1")
    update_all(config)
    file = tmp_path / "device" / "agent.toml"
    script = Path(sysconfig.get_path("scripts")) / "edgewright-agent"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sink:
        sink.bind(str(tmp_path / "notify"))
        sink.settimeout(20)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        process = subprocess.Popen([script, "run", "--config", str(file)], env=environment)
        try:
            assert _messages(sink, "READY=1")[-1] == "READY=1"
            assert _messages(sink, "WATCHDOG=1")[-1] == "WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            assert _messages(sink, "STOPPING=1")[-1] == "STOPPING=1"
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
    spool = Spool(config.data_dir / "spool.db", max_bytes=1 << 20)
    records = [stored.record for stored in spool.batch(1000)]
    spool.close()
    assert {"agent.start", "agent.stop"} <= {record["name"] for record in records if record["kind"] == "event"}
