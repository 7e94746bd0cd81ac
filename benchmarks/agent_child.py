"""One process of `python -m benchmarks.agent`: imports nothing that its kind does not need, and prints its figures as JSON."""

import json
import sys
import time
from pathlib import Path

KINDS = ("bare", "engine", "service")
INFERENCES = 3000
REST_REQUESTS = 2000
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


def service(config: str, artifact: str) -> dict[str, float]:
    import http.client
    import threading
    from urllib.parse import urlsplit

    from device_agent.config import load_config
    from device_agent.service import Service

    path = Path(config)
    settings = load_config(path).model_copy(update={"repository": None})
    running = Service(settings, path)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.engine.names() or not running.engine.is_ready(running.engine.names()[0]):
        time.sleep(0.001)
    (name,) = running.engine.names()
    while ":0" in running.server.where()[-3:]:
        time.sleep(0.001)
    connection = http.client.HTTPConnection(urlsplit(running.server.where()).netloc)
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    body = head + bytes(16)

    def request() -> None:
        connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        response = connection.getresponse()
        assert response.status == 200
        response.read()

    request()
    start = 1000 * time.process_time()
    found = []
    for _ in range(REST_REQUESTS):
        begun = time.perf_counter_ns()
        request()
        found.append((time.perf_counter_ns() - begun) / 1000)
    found.sort()
    resident = resident_mib()
    running.stop()
    thread.join()
    return {"start_cpu_ms": start, "resident_mib": resident, "rest_p99_us": found[int(len(found) * 0.99)]}


if __name__ == "__main__":
    kind = sys.argv[1]
    print(json.dumps({"bare": bare, "engine": engine, "service": service}[kind](*sys.argv[2:])))
