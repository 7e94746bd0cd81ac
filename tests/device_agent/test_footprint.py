"""What a running agent has in memory: a package that creeps in is megabytes on every board."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_agent.config import AgentConfig
from device_agent.update import update_all
from tests.simulators.repository import MODEL, RepositorySimulator

ROOT = Path(__file__).resolve().parents[2]
# numpy and the runtime are there in any case; these are not, unless someone imports them.
HEAVY = (
    "pydantic", "pydantic_core", "click", "bottle", "google.protobuf", "opentelemetry", "urllib3", "tuf", "securesystemslib",
    "cryptography", "ssl", "_hashlib", "http.client", "email", "asyncio", "shutil", "zipfile", "difflib", "secrets", "PIL",
    "dataclasses", "inspect", "importlib.metadata", "numpy.typing",
)  # fmt: skip
SCRIPT = """
import json, sys, threading
from pathlib import Path
import numpy as np
from device_agent.config import load_config
from device_agent.service import Service
before = set(sys.modules)
config = load_config(Path(sys.argv[1]))
service = Service(config, Path(sys.argv[1]))
runner = threading.Thread(target=service.run)
runner.start()
while not service.engine.is_ready(sys.argv[2]):
    pass
sending = {thread.name for thread in threading.enumerate()}
while config.telemetry.endpoint is not None and "telemetry-sender" not in sending:
    sending = {thread.name for thread in threading.enumerate()}
service.engine.infer(sys.argv[2], {"x": np.ones((1, 4), np.float32)})
service.telemetry.event("seen")
service.telemetry.flush()
service.tick()
print(json.dumps(sorted(sys.modules)))
service.stop()
runner.join(20)
"""


@pytest.mark.parametrize("reporting", [False, True])
def test_a_service_imports_what_it_runs_and_nothing_else(
    repository: RepositorySimulator, config: AgentConfig, reporting: bool
) -> None:
    repository.publish("r1")
    update_all(config)
    path = config.data_dir.parent / "agent.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("repository")]
    told = ["[telemetry]", 'endpoint = "http://127.0.0.1:9"', "flush_interval_s = 0.05"] if reporting else []
    path.write_text("\n".join([*lines, *told]) + "\n")
    # The self-test vectors of a release on probation are a zip archive: confirmed, as nearly always.
    from device_agent.store import confirm, store_for

    confirm(store_for(config.data_dir, MODEL))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), MODEL],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & set(HEAVY)


def test_litert_brings_nothing_that_is_heavy() -> None:
    script = (
        "import json, sys; from runtimes.litert_session import OPENER; OPENER._version()\n"
        "import ai_edge_litert.interpreter; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not set(json.loads(done.stdout)) & set(HEAVY)
