"""`run` and `compare` as functions: many fresh processes in, one document out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hw_benchmarks.errors import BenchError, ResultsMismatch
from hw_benchmarks.statistics import Comparison, compare, percentile
from hw_benchmarks.transports import open_transport
from runtimes.artifact.files import sha256_tree, size_tree

SCHEMA = "edgewright.bench/1"
SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """How to measure. ``repeats``: fresh processes per artifact; their spread is the noise that `compare` allows."""

    target: str = "local"
    scenario: str = "single-stream"
    runtime: str | None = None
    threads: int = 1
    duration_s: float = 2.0
    min_queries: int = 64
    warm_up: int = 10
    repeats: int = 5
    inputs: str | None = None
    driver: str = "auto"
    operators: bool = False
    timeout_s: float = 600.0


def run(artifacts: Sequence[Path], options: BenchOptions, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure ``artifacts`` on the target. Repeats are interleaved (a b c a b c), so that a slow minute hits all alike.

    Raises:
        BenchError: an artifact is missing, the target does not answer, or an artifact fails there.
    """
    for artifact in artifacts:
        if not artifact.exists():
            raise BenchError(f"{artifact} does not exist.", remedy="Check the path.")
    transport = open_transport(options.target)
    try:
        paths = {artifact: transport.prepare(artifact) for artifact in artifacts}
        inputs = transport.prepare(Path(options.inputs)) if options.inputs else None
        runs: dict[Path, list[dict[str, Any]]] = {artifact: [] for artifact in artifacts}
        for repeat in range(options.repeats):
            for artifact in artifacts:
                progress(f"{artifact.name}: run {repeat + 1} of {options.repeats}")
                request = _request(paths[artifact], inputs, options, first=repeat == 0)
                runs[artifact].append(transport.measure(request, options.timeout_s))
    finally:
        transport.close()
    return {
        "schema": SCHEMA,
        "target": options.target,
        "options": asdict(options),
        "results": [_result(artifact, runs[artifact], options) for artifact in artifacts],
    }


def _request(path: str, inputs: str | None, options: BenchOptions, *, first: bool) -> dict[str, Any]:
    kept = ("scenario", "runtime", "threads", "duration_s", "min_queries", "warm_up", "driver")
    request = {name: getattr(options, name) for name in kept}
    return request | {"artifact": path, "inputs": inputs, "operators": options.operators and first}


def _result(artifact: Path, runs: list[dict[str, Any]], options: BenchOptions) -> dict[str, Any]:
    """One artifact's figures: percentiles over all repeats, and the median of each repeat for `compare`."""
    latencies = [value for run in runs for value in run["latencies_ns"]]
    first = runs[0]
    return {
        "artifact": artifact.name,
        "sha256": sha256_tree(artifact),
        "size_bytes": size_tree(artifact),
        "scenario": options.scenario,
        "driver": first["driver"],
        "runtime": first["runtime"],
        "runtime_version": first["runtime_version"],
        "evidence": first["evidence"],
        "queries": len(latencies),
        "latency_ns": {f"p{round(100 * share)}": asdict(percentile(latencies, share)) for share in SHARES},
        "repeat_medians_ns": [statistics.median(run["latencies_ns"]) for run in runs],
        "throughput_per_s": statistics.median(run["throughput_per_s"] for run in runs),
        "cold_start_ns": {
            key: int(statistics.median(r["cold_start_ns"][key] for r in runs)) for key in first["cold_start_ns"]
        },
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "memory_over_runtime_bytes": max(run["memory_over_runtime_bytes"] for run in runs),
        "energy_joules_per_query": _energy(runs),
        "operators": first.get("operators"),
        "environment": first["environment"],
    }


def _energy(runs: Iterable[dict[str, Any]]) -> float | None:
    shares = [run["energy_joules"] / run["queries"] for run in runs if run["energy_joules"] is not None]
    return statistics.median(shares) if shares else None


def compare_results(base: Path, new: Path, threshold: float) -> list[Comparison]:
    """Match results by artifact name and scenario, and judge each pair.

    Raises:
        ResultsMismatch: a file cannot be read, or nothing matches, or both were measured in incomparable ways.
    """
    before, after = _by_name(base), _by_name(new)
    common = [key for key in before if key in after]
    if not common:
        raise ResultsMismatch(
            f"{base.name} and {new.name} have no artifact and scenario in common.",
            remedy="Compare results of artifacts with the same names.",
        )
    for key in common:
        cpus = before[key]["environment"]["cpu"], after[key]["environment"]["cpu"]
        if cpus[0] != cpus[1]:
            raise ResultsMismatch(
                f"{key[0]} was measured on {cpus[0]!r} and on {cpus[1]!r}.", remedy="Measure both on the same device."
            )
    pairs = [(key, before[key]["repeat_medians_ns"], after[key]["repeat_medians_ns"]) for key in common]
    return [compare(key[0], first, second, threshold) for key, first, second in pairs]


def _by_name(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']!r}, expected {SCHEMA!r}")
        return {(r["artifact"], r["scenario"]): r for r in document["results"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsMismatch(
            f"{path} is not a results file: {error}.", remedy="Write it with edgewright-bench run -o."
        ) from error
