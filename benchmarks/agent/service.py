"""The real agent as its unit starts it, watched from outside: a client must not count as the server's memory."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

REQUESTS = 2000
PORT = 18321
_TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
_HEAD = json.dumps({"inputs": [_TENSOR], "parameters": {"binary_data_output": True}}).encode()
_HEADERS = {"Inference-Header-Content-Length": str(len(_HEAD)), "Content-Type": "application/octet-stream"}


def measure(config: Path, model: str, environment: dict[str, str]) -> dict[str, float]:
    """Start, ask, stop. CPU and memory are the process's, from /proc; latency is the client's."""
    command = [sys.executable, "-m", "device_agent.main", "run", "--config", str(config)]
    agent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        connection = _first_answer(agent, model)
        start = cpu_ms(agent.pid)
        found = sorted(_timed(connection, model) for _ in range(REQUESTS))
        time.sleep(1.5)  # a round of the sender, where one runs
        return {
            "start_cpu_ms": start,
            "resident_mib": resident_mib(agent.pid),
            "rest_median_us": found[len(found) // 2],
            "rest_p99_us": found[int(len(found) * 0.99)],
        }
    finally:
        agent.terminate()
        agent.wait(30)


def _first_answer(agent: subprocess.Popen[bytes], model: str) -> http.client.HTTPConnection:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if agent.poll() is not None:
            raise RuntimeError(f"the agent left with {agent.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT)
            _timed(connection, model)
            return connection
        except OSError:
            time.sleep(0.002)
    raise RuntimeError("the agent does not answer")


def _timed(connection: http.client.HTTPConnection, model: str) -> float:
    begun = time.perf_counter_ns()
    connection.request("POST", f"/v2/models/{model}/infer", _HEAD + bytes(16), _HEADERS)
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise RuntimeError(f"HTTP {response.status}")
    return (time.perf_counter_ns() - begun) / 1000


def cpu_ms(pid: int) -> float:
    """On a CPU so far, all threads. Source: Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat (nanoseconds)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text("ascii").split()[0]) for task in tasks) / 1e6


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@contextmanager
def receiver() -> Iterator[str]:
    """Takes everything that is posted; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def environment(cache: Path) -> dict[str, str]:
    """As installed: compiled once, and the allocator's arenas as in the unit."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(cache), "MALLOC_ARENA_MAX": "1", "ORT_DISABLE_TELEMETRY": "1"}
