"""What runs on the target: one artifact, one fresh process, one JSON document on stdout.

Needs python3, numpy and the runtime there, and of ours only the packages profiles and runtimes: the remote transports send them.
Called as `python3 -m hw_benchmarks.measure '{"artifact": ..., ...}'`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hw_benchmarks.environment import capture, energy_joules

if TYPE_CHECKING:
    from runtimes.session import Array, Session

MAX_LATENCIES = 100_000


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up and measure one artifact.

    Args:
        request: artifact (path), runtime (name or None), threads, scenario, duration_s, min_queries, warm_up, inputs (path of an
            .npz or None: random inputs with seed 0), operators (whether to add a profile per operator).

    Returns:
        cold start, latencies in nanoseconds in the order they happened, throughput, peak memory, environment.
    """
    start = time.perf_counter_ns()
    from runtimes.memory import peak_memory_bytes
    from runtimes.registry import open_session
    from runtimes.session import SessionOptions

    baseline = peak_memory_bytes()
    loaded_at = time.perf_counter_ns()
    options = SessionOptions(threads=request["threads"])
    with open_session(Path(request["artifact"]), runtime=request["runtime"], options=options) as session:
        opened_at = time.perf_counter_ns()
        feeds = make_feeds(session, request.get("inputs"))
        prepared_at = time.perf_counter_ns()
        session.run(feeds)
        first_ns = time.perf_counter_ns() - prepared_at
        for _ in range(request["warm_up"]):
            session.run(feeds)
        energy = energy_joules()
        result = run_scenario(session, feeds, request)
        result["energy_joules"] = _difference(energy, energy_joules())
        result |= {
            "cold_start_ns": {"import": loaded_at - start, "load": opened_at - loaded_at, "first": first_ns},
            "peak_memory_bytes": peak_memory_bytes(),
            "memory_over_runtime_bytes": max(0, peak_memory_bytes() - baseline),
            "runtime": session.runtime.name,
            "runtime_version": session.runtime.version,
            "evidence": session.runtime.evidence.value,
            "environment": capture(request["threads"]),
        }
    if request.get("operators"):
        result["operators"] = operator_profile(request)
    return result


def make_feeds(session: Session, inputs: str | None) -> dict[str, Array]:
    """One sample: from an .npz named as the inputs, else random. Free dimensions become 1."""
    import numpy as np

    given = dict(np.load(inputs)) if inputs else {}
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in session.inputs:
        shape = tuple(d or 1 for d in spec.shape)
        if spec.name in given:
            feeds[spec.name] = given[spec.name][: shape[0] if shape else None].astype(spec.dtype, copy=False)
        elif np.issubdtype(np.dtype(spec.dtype), np.floating):
            feeds[spec.name] = rng.random(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
    return feeds


def run_scenario(session: Session, feeds: dict[str, Array], request: dict[str, Any]) -> dict[str, Any]:
    """MLPerf's SingleStream or Offline, through LoadGen where it is installed, else by our own loop with the same rules."""
    driver: Callable[..., list[int]] = _own_loop
    name = "built-in"
    if request.get("driver", "auto") != "built-in":
        from hw_benchmarks import loadgen

        if loadgen.available():
            driver, name = loadgen.drive, "loadgen"
        elif request.get("driver") == "loadgen":
            raise RuntimeError("mlcommons-loadgen is not installed on the target")
    latencies = driver(session, feeds, request)
    elapsed = sum(latencies)
    return {
        "driver": name,
        "queries": len(latencies),
        "latencies_ns": latencies[:MAX_LATENCIES],
        "throughput_per_s": len(latencies) / (elapsed / 1e9),
    }


def _own_loop(session: Session, feeds: dict[str, Array], request: dict[str, Any]) -> list[int]:
    """One query after the other until both the duration and the number of queries are reached (LoadGen's termination rule)."""
    latencies: list[int] = []
    deadline = time.perf_counter_ns() + int(request["duration_s"] * 1e9)
    while len(latencies) < request["min_queries"] or time.perf_counter_ns() < deadline:
        start = time.perf_counter_ns()
        session.run(feeds)
        latencies.append(time.perf_counter_ns() - start)
    return latencies


def operator_profile(request: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Time per operator type, longest first, where the runtime can tell (onnxruntime); None elsewhere."""
    from runtimes.registry import open_session
    from runtimes.session import SessionOptions

    options = SessionOptions(threads=request["threads"], profile=True)
    with open_session(Path(request["artifact"]), runtime=request["runtime"], options=options) as session:
        end = getattr(session, "end_profiling", None)
        if end is None:
            return None
        feeds = make_feeds(session, request.get("inputs"))
        for _ in range(max(1, request["warm_up"])):
            session.run(feeds)
        trace: bytes = end()
    return summarise_trace(json.loads(trace))


def summarise_trace(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """onnxruntime's trace (microseconds per kernel call) as totals per operator type."""
    totals: dict[str, list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            entry = totals.setdefault(event["args"]["op_name"], [0, 0])
            entry[0] += 1
            entry[1] += int(event["dur"])
    rows = [{"operator": op, "calls": calls, "total_us": total} for op, (calls, total) in totals.items()]
    return sorted(rows, key=lambda row: (-int(str(row["total_us"])), str(row["operator"])))


def _difference(before: float | None, after: float | None) -> float | None:
    return after - before if before is not None and after is not None and after >= before else None


def main() -> None:
    """Print one document: {"ok": result} or {"error": {...}}. Runtimes that chatter on stdout are redirected to stderr."""
    from profiles.errors import EdgewrightError

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        document: dict[str, Any] = {"ok": measure(json.loads(sys.argv[1]))}
    except EdgewrightError as error:
        kind = type(error).__name__
        document = {
            "error": {"type": kind, "message": error.message, "remedy": error.remedy, "exit_code": int(error.exit_code)}
        }
    except ImportError as error:
        document = {
            "error": {
                "type": "ImportError",
                "message": str(error),
                "remedy": "Install it on the target.",
                "exit_code": 4,
            }
        }
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
