"""A board without any network answers a thousand requests, and what it has to tell arrives complete when the network returns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from device_agent.config import AgentConfig
from device_agent.otlp import OtlpHttp
from device_agent.spool import Spool
from device_agent.transports import Sender
from device_agent.update import update_all
from tests.device_agent.test_telemetry import Collector, collector  # noqa: F401
from tests.simulators.repository import MODEL, RepositorySimulator

REQUESTS = 1000
ALONE = ("unshare", "--map-root-user", "--net")  # a network namespace in which not even loopback is up
OFFLINE = """
import sys, time
from pathlib import Path
import numpy as np
from device_agent.config import load_config
from device_agent.engine import Engine
from device_agent.otlp import OtlpHttp
from device_agent.spool import Spool
from device_agent.transports import Sender
from device_agent.telemetry import Telemetry
from device_agent.errors import NetworkError
from device_agent.update import update_all

config = load_config(Path(sys.argv[1]))
spool = Spool(config.data_dir / "spool.db", max_bytes=1 << 20)
telemetry = Telemetry(spool)
sender = Sender(spool, OtlpHttp(config.telemetry, "device-0001"), 64, time.monotonic)
with Engine(config, recorder=telemetry) as engine:
    assert not engine.load()
    for number in range(int(sys.argv[2])):
        y = engine.infer("MODEL", {"x": np.full((1, 4), number % 7, np.float32)})["y"]
        assert (y == 2 * (number % 7) + 1).all()
        if number % 100 == 99:
            telemetry.flush()
            spool.flush()
            assert sender.pump() == 0
telemetry.event("end")
spool.flush()
print(spool.stats()["records"])
spool.close()
"""


def _cannot() -> str | None:
    try:
        done = subprocess.run([*ALONE, "true"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else f"no network namespaces here: {done.stderr.strip()[-100:]}"


WHY = _cannot()


@pytest.mark.skipif(WHY is not None, reason=WHY or "")
def test_a_thousand_answers_without_a_network(
    repository: RepositorySimulator,
    config: AgentConfig,
    tmp_path: Path,
    collector: Collector,  # noqa: F811
) -> None:
    repository.publish("r1")
    update_all(config)
    path = tmp_path / "device" / "agent.toml"
    path.write_text(path.read_text() + f'[telemetry]\nendpoint = "{collector.url}"\ntimeout_s = 1.0\n')
    script = OFFLINE.replace('"MODEL"', repr(MODEL))
    command = [*ALONE, sys.executable, "-c", script, str(path), str(REQUESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == REQUESTS // 100 + 1
    assert not collector.metrics and not collector.logs

    spool = Spool(config.data_dir / "spool.db", max_bytes=1 << 20)
    settings = config.telemetry.model_copy(update={"endpoint": collector.url})
    sender = Sender(spool, OtlpHttp(settings, "device-0001"), 64, lambda: 0.0)
    try:
        while sender.pump():
            pass
        assert spool.stats() == {"records": 0, "bytes": 0, "dropped": 0}
    finally:
        spool.close()
    points = [
        point
        for request in collector.metrics
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "edgewright.requests"
        for point in metric.sum.data_points
    ]
    assert sum(point.as_int for point in points) == REQUESTS
    assert len(collector.logs) == 1
