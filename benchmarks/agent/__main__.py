"""`python -m benchmarks.agent`: what the agent costs over a bare loop with the same runtime and model, in one run.

    memory      resident, after the same number of requests: the service with its server and spool against the loop
    reporting   the same with a collector that is reported to
    start-up    CPU time until the first answer
    in process  Engine.infer, guards and telemetry included, against session.run
    REST        a request over loopback with binary tensors against session.run, 99th percentile
    48 hours    as many telemetry intervals as 48 hours have, each with requests and a flush: growth of resident memory

Every figure is the median of several processes, the kinds taken in turn; the lowest of each kind stands beside it, which says more
where other work keeps the machine busy. All of them run from compiled bytecode, as installed. --part runs what one figure needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Container, Sequence
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
# Figure: the kind and key of the plain side and of ours, the divisor, the unit.
FIGURES = {
    "memory": (("bare", "resident_mib"), ("service", "resident_mib"), 1, "MiB"),
    "reporting": (("bare", "resident_mib"), ("reporting", "resident_mib"), 1, "MiB"),
    "start-up": (("bare", "start_cpu_ms"), ("service", "start_cpu_ms"), 1, "ms CPU"),
    "in process": (("bare", "median_us"), ("engine", "median_us"), 1, "us"),
    "REST p99": (("bare", "p99_us"), ("service", "rest_p99_us"), 1000, "ms"),
    "48 hours": (("steady", "resident_mib"), ("steady", "resident_after_mib"), 1, "MiB"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agent", description=__doc__)
    parser.add_argument("--part", choices=tuple(FIGURES), help="one figure only")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="processes of each kind")
    chosen = parser.parse_args(arguments)
    parts = (chosen.part,) if chosen.part else tuple(FIGURES)
    kinds = {kind for part in parts for kind, _ in FIGURES[part][:2]}
    with tempfile.TemporaryDirectory(prefix="edgewright-agent-") as folder:
        found = _measure(Path(folder), kinds, chosen.repeats)
    print("| figure | bare loop | agent | difference | of the lowest | goal |\n|---|---|---|---|---|---|")
    for part in parts:
        *sides, divisor, unit = FIGURES[part]
        plain, ours = ([row[key] / divisor for row in found[kind]] for kind, key in sides)
        middle, least = (of(ours) - of(plain) for of in (statistics.median, min))
        print(
            f"| {part} | {statistics.median(plain):.2f} {unit} | {statistics.median(ours):.2f} {unit} "
            f"| {middle:+.2f} {unit} | {least:+.2f} {unit} | {GOALS[part]} |"
        )


def _measure(folder: Path, kinds: Container[str], repeats: int) -> Found:
    artifact, path = _device(folder)
    environment = service.environment(folder / "bytecode")
    found: Found = {kind: [] for kind in (*KINDS, "service", "reporting") if kind in kinds}
    with service.receiver() as url:
        told = path.with_name("reporting.toml")
        told.write_text(path.read_text() + f'[telemetry]\nendpoint = "{url}"\nflush_interval_s = 1.0\n')
        for turn in range(repeats + 1):
            for kind in (kind for kind in KINDS if kind in found):
                command = [sys.executable, "-m", "benchmarks.agent.child", kind, str(path), str(artifact)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                found[kind].append(json.loads(done.stdout.splitlines()[-1]))
            for kind, settings in (("service", path), ("reporting", told)):
                if kind in found:
                    found[kind].append(service.measure(settings, MODEL, environment))
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
