"""`python -m benchmarks.agent`: what the agent costs over a bare loop with the same runtime and model, in one run.

    memory      resident, after the same number of inferences: the service with its server and telemetry against the loop
    start-up    CPU time until the first answer
    in process  Engine.infer, guards and telemetry included, against session.run
    REST        a request over loopback with binary tensors against session.run, 99th percentile
    48 hours    as many telemetry intervals as 48 hours have, each with requests and a flush: growth of resident memory

Every figure is the median of several processes, the kinds taken in turn.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.agent_child import KINDS
from device_agent.store import confirm, store_for
from device_agent.trust import provision
from device_agent.update import TRUST_FOLDER, update_all
from tests.device_agent.conftest import make_config
from tests.simulators.repository import MODEL, RepositorySimulator

REPEATS = 5
GOALS = {
    "memory": "10 MiB",
    "start-up": "60 ms CPU",
    "in process": "50 us",
    "REST p99": "2 ms",
    "48 hours": "no growth",
}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="edgewright-agent-") as folder:
        found = _measure(Path(folder))
    bare, agent, service = (found[kind] for kind in KINDS)

    def median(rows: Sequence[dict[str, float]], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    rows = (
        ("memory", median(bare, "resident_mib"), median(service, "resident_mib"), "MiB"),
        ("start-up", median(bare, "start_cpu_ms"), median(service, "start_cpu_ms"), "ms CPU"),
        ("in process", median(bare, "median_us"), median(agent, "median_us"), "us"),
        ("REST p99", median(bare, "p99_us") / 1000, median(service, "rest_p99_us") / 1000, "ms"),
        ("48 hours", median(agent, "resident_mib"), median(agent, "resident_after_mib"), "MiB"),
    )
    print("| figure | bare loop | agent | difference | goal |\n|---|---|---|---|---|")
    for name, plain, ours, unit in rows:
        print(f"| {name} | {plain:.2f} {unit} | {ours:.2f} {unit} | {ours - plain:+.2f} {unit} | {GOALS[name]} |")


def _measure(folder: Path) -> dict[str, list[dict[str, float]]]:
    repository = RepositorySimulator(folder / "repository")
    repository.publish("r1")
    config = make_config(folder / "device", str(repository.folder))
    provision(config.data_dir / TRUST_FOLDER, repository.root.read_bytes())
    update_all(config)
    state = confirm(store_for(config.data_dir, MODEL))
    assert state.active is not None
    artifact = store_for(config.data_dir, MODEL).artifact(state.active)
    path = folder / "device" / "agent.toml"
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(REPEATS):
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.agent_child", kind, str(path), str(artifact)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[kind].append(json.loads(done.stdout.splitlines()[-1]))
    return found


if __name__ == "__main__":
    main()
