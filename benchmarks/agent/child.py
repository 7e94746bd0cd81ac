"""One process of `python -m benchmarks.agent`: imports nothing that its kind does not need, and prints its figures as JSON."""

import json
import sys
import time
from pathlib import Path

KINDS = ("bare", "engine")
INFERENCES = 3000
INTERVALS = 48 * 60  # flush_interval_s is a minute by default
PER_INTERVAL = 20


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
    import numpy as np

    from device_agent.config import load_config
    from device_agent.engine import Engine
    from device_agent.spool import Spool
    from device_agent.telemetry import Telemetry

    settings = load_config(Path(config))
    spool = Spool(settings.data_dir / "bench.db", max_bytes=1 << 20)
    telemetry = Telemetry(spool)
    with Engine(settings, recorder=telemetry) as running:
        running.load()
        (name,) = running.names()
        feeds = {"x": np.ones((1, 4), np.float32)}
        running.infer(name, feeds)
        start = 1000 * time.process_time()
        found = timings(lambda: running.infer(name, feeds))
        before = resident_mib()
        for _ in range(INTERVALS):
            for _ in range(PER_INTERVAL):
                running.infer(name, feeds)
            telemetry.flush()
            spool.flush()
        after = resident_mib()
    spool.close()
    return {"start_cpu_ms": start, "resident_mib": before, "resident_after_mib": after, **summary(found)}


if __name__ == "__main__":
    print(json.dumps({"bare": bare, "engine": engine}[sys.argv[1]](*sys.argv[2:])))
