"""One process of `python -m benchmarks.agent`: imports nothing that its kind does not need, and prints its figures as JSON."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("bare", "engine", "steady")
INFERENCES = 3000
INTERVALS = 48 * 60  # flush_interval_s is a minute by default
PER_INTERVAL = 20
WARM_INTERVALS = 600


def resident_mib() -> float:
    """Resident memory now. Source: proc_pid_status(5), VmRSS."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def timings(call) -> list[float]:  # type: ignore[no-untyped-def]
    """Microseconds of INFERENCES calls, sorted."""
    found = []
    for _ in range(INFERENCES):
        start = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - start) / 1000)
    return sorted(found)


def summary(found: list[float]) -> dict[str, float]:
    return {"median_us": found[len(found) // 2], "p99_us": found[int(len(found) * 0.99)]}


def bare(config: str, artifact: str) -> dict[str, float]:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
    x = np.ones((1, 4), np.float32)
    session.run(None, {"x": x})
    start = 1000 * time.process_time()
    found = timings(lambda: session.run(None, {"x": x}))
    return {"start_cpu_ms": start, "resident_mib": resident_mib(), **summary(found)}


def engine(config: str, artifact: str) -> dict[str, float]:
    with _running(config, max_bytes=1 << 20) as (infer, _):
        start = 1000 * time.process_time()
        return {"start_cpu_ms": start, "resident_mib": resident_mib(), **summary(timings(infer))}


def steady(config: str, artifact: str) -> dict[str, float]:
    """48 hours once the spool is full: until then SQLite's page cache grows with it, to 2 MiB at most."""
    with _running(config, max_bytes=128 << 10) as (infer, flush):

        def spend(intervals: int) -> float:
            for _ in range(intervals):
                for _ in range(PER_INTERVAL):
                    infer()
                flush()
            return resident_mib()

        return {"resident_mib": spend(WARM_INTERVALS), "resident_after_mib": spend(INTERVALS)}


@contextmanager
def _running(config: str, max_bytes: int) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """Something that infers and something that ends a telemetry interval, of an engine with a spool of so many bytes."""
    import numpy as np

    from device_agent.config import load_config
    from device_agent.engine import Engine
    from device_agent.spool import Spool
    from device_agent.telemetry import Telemetry

    settings = load_config(Path(config))
    spool = Spool(settings.data_dir / f"bench-{max_bytes}.db", max_bytes=max_bytes)
    telemetry = Telemetry(spool)
    with Engine(settings, recorder=telemetry) as running:
        running.load()
        (name,) = running.names()
        feeds = {"x": np.ones((1, 4), np.float32)}
        running.infer(name, feeds)

        def flush() -> None:
            telemetry.flush()
            spool.flush()

        yield lambda: running.infer(name, feeds), flush
    spool.close()


if __name__ == "__main__":
    print(json.dumps({"bare": bare, "engine": engine, "steady": steady}[sys.argv[1]](*sys.argv[2:])))
