"""The demo's device: a configuration, an agent process, and clients that speak the Open Inference Protocol."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import urllib3
from numpy.typing import NDArray

from demo.console import DemoFailed, command

MODEL = "digits"
START_S = 60.0
CONFIG = """\
repository = "{repository}"
channel = "stable"
data_dir = "{data_dir}"

[[models]]
name = "digits"
profile = "raspberry-pi-4b"

[server]
port = {port}

[update]
interval_s = 3.0
timeout_s = 5.0

[health]
confirm_after_s = 2.0
confirm_requests = 20

[telemetry]
endpoint = "{collector}"
flush_interval_s = 1.0
timeout_s = 3.0
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(folder: Path, repository: Path, collector: str, port: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "agent.toml"
    text = CONFIG.format(
        repository=repository.resolve(), data_dir=(folder / "data").resolve(), port=port, collector=collector
    )
    path.write_text(text, "utf-8")
    return path


@contextlib.contextmanager
def agent(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`edgewright-agent run` in the background; stopped by SIGTERM at the end."""
    with log.open("ab") as sink:
        arguments = [command("edgewright-agent"), "run", "--config", str(config)]
        process = subprocess.Popen(arguments, stdout=sink, stderr=sink, env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"})
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Client:
    """One keep-alive connection to the agent's protocol endpoint."""

    port: int
    pool: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(retries=False, timeout=30.0))

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if self.pool.request("GET", self._url("/v2/health/ready")).status == 200:
                    return
            time.sleep(0.1)
        raise DemoFailed("the agent did not become ready")

    def infer(self, image: NDArray[np.float32]) -> dict[str, Any]:
        """``image``: [1, 8, 8]. Returns the protocol's answer; raises DemoFailed for anything but 200."""
        tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": image.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        answer = self.pool.request("POST", self._url(f"/v2/models/{MODEL}/infer"), body=body)
        if answer.status != 200:
            raise DemoFailed(f"inference answered {answer.status}: {answer.data[:200]!r}")
        document: dict[str, Any] = json.loads(answer.data)
        return document

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def digit(answer: dict[str, Any]) -> int:
    return int(np.argmax(answer["outputs"][0]["data"]))


def answer_all(port: int, images: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[int, float]:
    """(right answers, requests per second) over all images, one request each."""
    client = Client(port)
    client.wait_ready()
    start = time.perf_counter()
    right = sum(digit(client.infer(image)) == label for image, label in zip(images, labels, strict=True))
    return int(right), len(images) / (time.perf_counter() - start)


class Traffic:
    """Requests that keep coming from a thread while something else happens; counts answers, failures and versions seen."""

    def __init__(self, port: int, images: NDArray[np.float32]) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self.versions: list[str] = []
        self._client, self._images = Client(port), images
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *exit_arguments: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._client.infer(self._images[self.answers % len(self._images)])
                version = str(answer.get("model_version", "?"))
                if not self.versions or self.versions[-1] != version:
                    self.versions.append(version)
                self.answers += 1
            except (DemoFailed, urllib3.exceptions.HTTPError) as error:
                self.failures.append(str(error))
            time.sleep(0.002)
