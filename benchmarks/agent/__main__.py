"""`python -m benchmarks.agent`: what the agent costs over a bare loop with the same runtime and model, in one run.

    memory      resident, after the same number of requests: the service with its server and spool against the loop
    reporting   the same with a collector that is reported to
    start-up    CPU time until the first answer
    in process  Engine.infer, guards and telemetry included, against session.run
    REST        a request over loopback with binary tensors against session.run, 99th percentile
    48 hours    as many telemetry intervals as 48 hours have, each with requests and a flush: growth of resident memory

Every figure is the median of several processes, the kinds taken in turn. All of them run from compiled bytecode, as installed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.agent import service
from benchmarks.agent.child import KINDS
from device_agent.store import confirm, store_for
from device_agent.trust import provision
from device_agent.update import TRUST_FOLDER, update_all
from tests.device_agent.conftest import make_config
from tests.simulators.repository import MODEL, RepositorySimulator

REPEATS = 5
GOALS = {
    "memory": "10 MiB",
    "reporting": "10 MiB",
    "start-up": "60 ms CPU",
    "in process": "50 us",
    "REST p99": "2 ms",
    "48 hours": "no growth",
}
Found = dict[str, list[dict[str, float]]]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="edgewright-agent-") as folder:
        found = _measure(Path(folder))
    bare, agent, serving, reporting = (found[kind] for kind in (*KINDS, "service", "reporting"))

    def median(rows: Sequence[dict[str, float]], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    rows = (
        ("memory", median(bare, "resident_mib"), median(serving, "resident_mib"), "MiB"),
        ("reporting", median(bare, "resident_mib"), median(reporting, "resident_mib"), "MiB"),
        ("start-up", median(bare, "start_cpu_ms"), median(serving, "start_cpu_ms"), "ms CPU"),
        ("in process", median(bare, "median_us"), median(agent, "median_us"), "us"),
        ("REST p99", median(bare, "p99_us") / 1000, median(serving, "rest_p99_us") / 1000, "ms"),
        ("48 hours", median(agent, "resident_mib"), median(agent, "resident_after_mib"), "MiB"),
    )
    print("| figure | bare loop | agent | difference | goal |\n|---|---|---|---|---|")
    for name, plain, ours, unit in rows:
        print(f"| {name} | {plain:.2f} {unit} | {ours:.2f} {unit} | {ours - plain:+.2f} {unit} | {GOALS[name]} |")


def _measure(folder: Path) -> Found:
    artifact, path = _device(folder)
    environment = service.environment(folder / "bytecode")
    found: Found = {kind: [] for kind in (*KINDS, "service", "reporting")}
    with service.receiver() as url:
        told = path.with_name("reporting.toml")
        told.write_text(path.read_text() + f'[telemetry]\nendpoint = "{url}"\nflush_interval_s = 1.0\n')
        for turn in range(REPEATS + 1):
            for kind in KINDS:
                command = [sys.executable, "-m", "benchmarks.agent.child", kind, str(path), str(artifact)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                found[kind].append(json.loads(done.stdout.splitlines()[-1]))
            found["service"].append(service.measure(path, MODEL, environment))
            found["reporting"].append(service.measure(told, MODEL, environment))
            if turn == 0:  # compiles
                found = {kind: [] for kind in found}
    return found


def _device(folder: Path) -> tuple[Path, Path]:
    """A device with a confirmed release and no repository any more: its artifact and its configuration."""
    repository = RepositorySimulator(folder / "repository")
    repository.publish("r1")
    config = make_config(folder / "device", str(repository.folder))
    provision(config.data_dir / TRUST_FOLDER, repository.root.read_bytes())
    update_all(config)
    store = store_for(config.data_dir, MODEL)
    state = confirm(store)
    assert state.active is not None
    path = folder / "device" / "agent.toml"
    lines = path.read_text().replace("port = 0", f"port = {service.PORT}").splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("repository")) + "\n")
    return store.artifact(state.active), path


if __name__ == "__main__":
    main()
