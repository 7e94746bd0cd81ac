"""The agent on emulated boards: installed from wheels, provisioned, answering, updated. Run: see tests/device/README.md."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.device import board as boards
from tests.device.toy import toy_tflite
from tests.simulators.repository import MODEL, PROFILE, RepositorySimulator

WHY_NOT = boards.missing()
pytestmark = [pytest.mark.device, pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")]
PORT = 18421
FORMS = {"arm64": None, "armhf": ("model.tflite", "tflite", "litert")}


@dataclass
class Device:
    """A board with a data folder and a repository that it sees."""

    name: str
    root: Path
    data: Path
    repository: RepositorySimulator

    @property
    def _binds(self) -> list[tuple[Path, str]]:
        return [(self.data, "/data"), (self.repository.folder, "/repository")]

    def agent(self, *words: str) -> dict[str, Any]:
        """Run a command with --json; its document."""
        line = boards.agent(
            self.root, boards.BOARDS[self.name], *words, "--config", "/data/agent.toml", "--json", binds=self._binds
        )
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def start(self) -> subprocess.Popen[bytes]:
        words = ("run", "--config", "/data/agent.toml")
        return subprocess.Popen(boards.agent(self.root, boards.BOARDS[self.name], *words, binds=self._binds))

    def publish(self, release: str, w: float) -> None:
        form = FORMS[self.name]
        model = None if form is None else toy_tflite(w, 1.0)
        self.repository.publish(release, model, w=w, **({} if form is None else {"form": form}))

    def answer(self) -> float:
        np.savez(self.data / "x.npz", x=np.ones((1, 4), np.float32))
        self.agent("infer", "--inputs", "/data/x.npz", "-o", "/data/y.npz")
        with np.load(self.data / "y.npz") as found:
            return float(found["y"][0, 0])


@pytest.fixture(scope="module", params=list(boards.BOARDS))
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp(request.param)
    root = boards.make_root(boards.BOARDS[request.param], folder)
    data = folder / "data"
    data.mkdir()
    (data / "agent.toml").write_text(
        f'repository = "/repository"\ndata_dir = "state"\n[[models]]\nname = "{MODEL}"\nprofile = "{PROFILE}"\n'
        f"[server]\nport = {PORT}\n[update]\ninterval_s = 100000.0\n[health]\nconfirm_after_s = 0.0\n"
    )
    yield Device(request.param, root, data, RepositorySimulator(folder / "repository"))


def test_it_is_installed_answers_updates_and_serves(device: Device) -> None:
    device.publish("r1", 2.0)
    done = device.agent("install", "/repository", "--root", "/repository/metadata/1.root.json")
    assert done["results"][0]["outcome"] == "activated", done
    assert device.answer() == 3.0
    device.publish("r2", 5.0)
    process = device.start()
    try:
        # The service takes the update on its own timer, confirms r1 first, and answers over HTTP.
        assert _served(process) in (3.0, 6.0)
        deadline = time.monotonic() + 300
        while _served(process) != 6.0:
            assert time.monotonic() < deadline, "the update was not taken"
            time.sleep(1.0)
    finally:
        process.terminate()
        assert process.wait(120) == 0
    status = device.agent("status")
    assert status["models"][MODEL]["active"]["release"] == "r2" and not status["models"][MODEL]["bad"]
    assert device.answer() == 6.0
    assert device.agent("doctor")["ok"]
    assert device.agent("rollback")["release"] == "r1"


def _served(process: subprocess.Popen[bytes]) -> float:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0] * 4}]}
    url = f"http://127.0.0.1:{PORT}/v2/models/{MODEL}/infer"
    deadline = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as answer:
                return float(json.load(answer)["outputs"][0]["data"][0])
        except OSError:
            assert process.poll() is None, "the agent left"
            assert time.monotonic() < deadline, "the agent does not answer"
            time.sleep(0.5)
