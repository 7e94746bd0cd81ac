"""The server over real loopback HTTP, hot swap under load, and the service as a whole."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from device_agent.config import AgentConfig, HealthConfig, ServerConfig
from device_agent.engine import Engine
from device_agent.errors import RequestError
from device_agent.server import Server
from device_agent.service import Service
from device_agent.store import store_for
from device_agent.trust import provision
from device_agent.update import TRUST_FOLDER, update_all
from tests.device_agent.conftest import make_config
from tests.simulators.repository import MODEL, RepositorySimulator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    folder = tmp_path_factory.mktemp("server")
    repository = RepositorySimulator(folder / "repository")
    repository.publish("r1")
    config = make_config(folder / "device", str(repository.folder))
    provision(config.data_dir / TRUST_FOLDER, repository.root.read_bytes())
    update_all(config)
    with Engine(config) as engine:
        assert not engine.load()
        running = Server(engine, config.server.model_copy(update={"max_request_bytes": 4096}))
        running.start()
        yield engine, running.where()
        running.stop()


def call(
    url: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request(method, path, body or None, headers or {})
    response = connection.getresponse()
    answer = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return answer


def tensor(data: Any, shape: list[int] | None = None, datatype: str = "FP32") -> bytes:
    entry = {"name": "x", "shape": shape or [1, 4], "datatype": datatype, "data": data}
    return json.dumps({"id": "7", "inputs": [entry]}).encode()


def test_metadata_and_health(server: tuple[Engine, str]) -> None:
    _, url = server
    assert json.loads(call(url, "GET", "/v2")[2])["extensions"] == ["binary_tensor_data"]
    assert call(url, "GET", "/v2/health/live")[0] == 200
    assert call(url, "GET", "/v2/health/ready")[0] == 200
    assert call(url, "GET", f"/v2/models/{MODEL}/ready")[0] == 200
    document = json.loads(call(url, "GET", f"/v2/models/{MODEL}")[2])
    assert document["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert document["versions"] == ["r1"]


def test_infer_json(server: tuple[Engine, str]) -> None:
    status, _, body = call(server[1], "POST", f"/v2/models/{MODEL}/infer", tensor([[0, 1, 2, 3.5]]))
    document = json.loads(body)
    assert status == 200 and document["id"] == "7" and document["model_version"] == "r1"
    assert document["outputs"] == [{"name": "y", "shape": [1, 4], "datatype": "FP32", "data": [1, 3, 5, 8]}]


def test_infer_binary(server: tuple[Engine, str]) -> None:
    raw = np.asarray([[0, 1, 2, 3], [4, 5, 6, 7]], "<f4").tobytes()
    entry = {"name": "x", "shape": [2, 4], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    wanted = {"name": "y", "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [entry], "outputs": [wanted]}).encode()
    lengths = {"Inference-Header-Content-Length": str(len(header))}
    status, headers, body = call(server[1], "POST", f"/v2/models/{MODEL}/infer", header + raw, lengths)
    assert status == 200 and headers["Content-Type"] == "application/octet-stream"
    size = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:size])["outputs"][0]["parameters"] == {"binary_data_size": 32}
    np.testing.assert_array_equal(np.frombuffer(body[size:], "<f4"), np.arange(8) * 2.0 + 1.0)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v2/models/other/infer", tensor([0] * 4), {}, 404),
        ("/nothing", b"{}", {}, 404),
        (f"/v2/models/{MODEL}/versions/r9/infer", tensor([0] * 4), {}, 404),
        (f"/v2/models/{MODEL}/infer", b"{", {}, 400),
        (f"/v2/models/{MODEL}/infer", b"[]", {}, 400),
        (f"/v2/models/{MODEL}/infer", b'{"inputs": []}', {}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([0] * 3), {}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([0] * 4, [4]), {}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([0] * 4, [1, -4]), {}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([0] * 4, datatype="INT8"), {}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([[0, 1], [2]]), {}, 400),
        (f"/v2/models/{MODEL}/infer", tensor(["a", "b", "c", "d"]), {}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([float("nan"), 0, 0, 0]), {}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([1e9, 0, 0, 0]), {}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([0] * 4), {"Inference-Header-Content-Length": "9999"}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([0] * 4), {"Inference-Header-Content-Length": "-1"}, 400),
        (f"/v2/models/{MODEL}/infer", tensor([0] * 4) + b" " * 5000, {}, 413),
    ],
)
def test_bad_requests_are_answered_in_json(
    server: tuple[Engine, str], path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    got, _, answer = call(server[1], "POST", path, body, headers)
    assert got == status and json.loads(answer)["error"]


def test_without_a_release_the_model_is_503(config: AgentConfig) -> None:
    with Engine(config) as engine:
        assert engine.load()
        running = Server(engine, config.server)
        running.start()
        assert call(running.where(), "GET", "/v2/health/ready")[0] == 503
        assert call(running.where(), "POST", f"/v2/models/{MODEL}/infer", tensor([0] * 4))[0] == 503
        running.stop()


def test_unix_socket(repository: RepositorySimulator, config: AgentConfig, tmp_path: Path) -> None:
    repository.publish("r1")
    update_all(config)
    with Engine(config) as engine:
        running = Server(engine, ServerConfig(unix_socket=tmp_path / "s"))
        running.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
            assert b"200 OK" in client.recv(200)
        running.stop()
    assert not (tmp_path / "s").exists()


def test_hot_swap_fails_no_request(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    update_all(config)
    repository.publish("r2", w=5.0)
    answers: list[float] = []
    failures: list[Exception] = []
    done = threading.Event()
    with Engine(config) as engine:
        engine.load()

        def client() -> None:
            while not done.is_set():
                try:
                    answers.append(float(engine.infer(MODEL, {"x": np.ones((1, 4), np.float32)})["y"][0, 0]))
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        update_all(config)
        assert engine.refresh(MODEL)
        while answers[-1] != 6.0:
            done.wait(0.01)
        done.set()
        for thread in threads:
            thread.join()
    assert not failures and set(answers) == {3.0, 6.0}
    assert len(answers) > 10


def test_guard_counts_refusals(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    update_all(config)
    with Engine(config) as engine:
        engine.load()
        with pytest.raises(RequestError):
            engine.infer(MODEL, {"x": np.full((1, 4), np.inf, np.float32)})
        health = engine.health(MODEL)
    assert health is not None and health[1].refused == 1 and health[1].answered == 0


def test_service_confirms_on_its_own_requests(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    update_all(config)
    health = HealthConfig(confirm_after_s=0, confirm_requests=2)
    quiet = config.model_copy(update={"health": health, "repository": None})
    service = Service(quiet, config.data_dir.parent / "agent.toml")
    runner = threading.Thread(target=service.run)
    runner.start()
    store = store_for(config.data_dir, MODEL)
    for _ in range(100):
        if store.load().confirmed:
            break
        threading.Event().wait(0.1)
    service.stop()
    runner.join(10)
    assert store.load().confirmed and store.load().floor == 1 and not runner.is_alive()


def test_crash_loop_rolls_back(repository: RepositorySimulator, config: AgentConfig) -> None:
    from device_agent.store import confirm

    repository.publish("r1")
    update_all(config)
    store = store_for(config.data_dir, MODEL)
    confirm(store)
    repository.publish("r2", w=5.0)
    update_all(config)
    for start in range(config.health.max_boots + 1):
        service = Service(config, config.data_dir.parent / "agent.toml")
        service._recover()
        service.spool.close()
        ref = store.load().active
        assert ref is not None
        assert ref.release == ("r2" if start < config.health.max_boots else "r1")


@pytest.mark.parametrize("requests", [1, 12])
def test_a_stop_answers_every_request_that_has_come_in(
    requests: int, repository: RepositorySimulator, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that wait for a thread: four are at work, the others queue."""
    repository.publish("r1")
    update_all(config)
    with Engine(config) as engine:
        engine.load()
        running = Server(engine, config.server)
        running.start()
        where, infer, inside = running.where(), engine.answer, threading.Semaphore(0)

        def slow(*arguments: Any, **more: Any) -> Any:
            inside.release()
            time.sleep(0.2)
            return infer(*arguments, **more)

        monkeypatch.setattr(engine, "answer", slow)
        found: list[int] = []
        clients = [
            threading.Thread(
                target=lambda: found.append(call(where, "POST", f"/v2/models/{MODEL}/infer", tensor([0.5] * 4))[0])
            )
            for _ in range(requests)
        ]
        for client in clients:
            client.start()
        assert inside.acquire(timeout=10)
        running.stop()
        for client in clients:
            client.join(20)
        assert found == [200] * requests
        with pytest.raises(OSError):
            call(where, "GET", "/v2/health/live")


def test_a_stop_does_not_wait_for_ever(
    repository: RepositorySimulator, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.publish("r1")
    update_all(config)
    with Engine(config) as engine:
        engine.load()
        running = Server(engine, config.server)
        running.start()
        where, release = running.where(), threading.Event()
        monkeypatch.setattr(engine, "infer", lambda *_, **__: release.wait(20))

        def ask() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                call(where, "POST", f"/v2/models/{MODEL}/infer", tensor([0.5] * 4))

        threading.Thread(target=ask, daemon=True).start()
        time.sleep(0.2)
        started = time.monotonic()
        running.stop(timeout_s=0.5)
        release.set()
        assert time.monotonic() - started < 10
