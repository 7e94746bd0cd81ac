"""What must not touch answering: a swap under load, the old release's memory, telemetry that is stuck, a report that fails."""

from __future__ import annotations

import gc
import http.client
import multiprocessing
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime
import pytest

from device_agent.api import update_and_report
from device_agent.config import AgentConfig
from device_agent.engine import Engine
from device_agent.service import Service
from device_agent.spool import Spool
from device_agent.store import confirm, store_for
from device_agent.telemetry import Telemetry
from device_agent.update import update_all
from tests.device_agent.test_server import tensor
from tests.simulators.repository import MODEL, WIDTH, RepositorySimulator

ONES = {"x": np.ones((1, WIDTH), np.float32)}


def test_a_swap_under_load_answers_every_request_of_open_connections(
    repository: RepositorySimulator, config: AgentConfig, tmp_path: Path
) -> None:
    """Over HTTP, with connections that stay: each answer is one release's, whole, and says which."""
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    service = Service(config.model_copy(update={"repository": None}), tmp_path / "device" / "agent.toml")
    service.engine.load()
    service.server.start()
    where, seen, done = urlsplit(service.server.where()).netloc, set[tuple[int, bytes]](), threading.Event()

    def client() -> None:
        connection = http.client.HTTPConnection(where, timeout=20)
        while not done.is_set():
            connection.request("POST", f"/v2/models/{MODEL}/infer", tensor([1.0] * 4))
            response = connection.getresponse()
            seen.add((response.status, response.read()))
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(3)]
    for one in clients:
        one.start()
    try:
        for number in (2, 3):
            repository.publish(f"r{number}", w=float(number))
            assert update_all(config)[0].outcome == "activated"
            service.tick()
            confirm(store_for(config.data_dir, MODEL))
            wanted = f'"r{number}"'.encode()
            while not any(wanted in body for _, body in list(seen)):
                done.wait(0.01)
    finally:
        done.set()
        for one in clients:
            one.join(20)
        service.server.stop()
        service.engine.close()
        service.spool.close()
    assert {status for status, _ in seen} == {200}
    assert len({body for _, body in seen}) == 3, "one body per release, and no mixture"


def heavy(w: float, mib: int) -> bytes:
    """y = w x + 1 with so many MiB of weights, which the answer needs: each column of 0 adds nothing."""
    zeros = np.zeros((WIDTH, mib << 18 >> 2), np.float32)
    zeros[:, 0] = w / WIDTH
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "wide"], ["spread"]),
        onnx.helper.make_node("ReduceSum", ["spread", "last"], ["sum"], keepdims=1),
        onnx.helper.make_node("Mul", ["x", "none"], ["shape"]),
        onnx.helper.make_node("Add", ["sum", "one"], ["moved"]),
        onnx.helper.make_node("Add", ["moved", "shape"], ["y"]),
    ]
    values = {"wide": zeros, "last": np.array([1], np.int64), "none": np.float32(0), "one": np.float32(1)}
    graph = onnx.helper.make_graph(
        nodes,
        "heavy",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", WIDTH])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", WIDTH])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    opset = onnx.helper.make_opsetid("", 18)
    return bytes(onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset]).SerializeToString())


def resident_mib() -> float:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def sessions() -> int:
    gc.collect()
    return sum(isinstance(one, onnxruntime.InferenceSession) for one in gc.get_objects())


def serve(config: AgentConfig, pipe: Connection) -> None:
    """A process that does nothing but answer: after each new release, what it answers, its sessions, its resident MiB."""
    with Engine(config) as engine:
        engine.load()
        while True:
            answered = float(engine.infer(MODEL, ONES)["y"][0, 0])
            pipe.send((answered, sessions(), resident_mib()))
            if not pipe.recv():
                break
            assert engine.refresh(MODEL)
    pipe.send(sessions())


def test_a_swap_frees_the_memory_of_the_old_release(repository: RepositorySimulator, config: AgentConfig) -> None:
    mib, check = 48, {"max_abs_error": 100.0}  # the vectors are another model's
    here, there = (context := multiprocessing.get_context("spawn")).Pipe()
    repository.publish("r1", heavy(1.0, mib), self_test=check)
    assert update_all(config)[0].outcome == "activated"
    child = context.Process(target=serve, args=(config, there))
    child.start()
    try:
        seen = [received(here)]
        for number in (2, 3, 4, 5):
            confirm(store_for(config.data_dir, MODEL))
            repository.publish(f"r{number}", heavy(float(number), mib), self_test=check)
            assert update_all(config)[0].outcome == "activated"
            here.send(True)
            seen.append(received(here))
        here.send(False)
        assert received(here) == 0
    finally:
        child.join(20)
        child.kill()
    assert [(answered, held) for answered, held, _ in seen] == [(number + 1.0, 1) for number in (1, 2, 3, 4, 5)]
    assert seen[-1][2] - seen[0][2] < mib, "four releases came and went; not even one stayed"


def received(pipe: Connection) -> Any:
    assert pipe.poll(60), "the serving process is silent"
    return pipe.recv()


def test_a_request_inside_keeps_the_old_release_until_it_leaves(
    repository: RepositorySimulator, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sessions()
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=5.0)
    inside, leave, found = threading.Event(), threading.Event(), []
    with Engine(config) as engine:
        engine.load()
        real = engine._answer

        def slow(*arguments: object, **more: object) -> object:
            inside.set()
            assert leave.wait(20)
            return real(*arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(engine, "_answer", slow)
        client = threading.Thread(target=lambda: found.append(engine.answer(MODEL, ONES)))
        client.start()
        assert inside.wait(20)
        monkeypatch.setattr(engine, "_answer", real)
        update_all(config)
        assert engine.refresh(MODEL) and sessions() == before + 2
        assert engine.answer(MODEL, ONES).release == "r2"
        leave.set()
        client.join(20)
        assert (found[0].release, float(found[0].outputs["y"][0, 0])) == ("r1", 3.0)
        assert sessions() == before + 1


def test_inference_never_waits_for_telemetry(
    repository: RepositorySimulator, config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk does not come back from a write: everything is answered, what does not fit in memory is counted."""
    repository.publish("r1")
    update_all(config)
    stuck = threading.Event()
    real = Spool._commit

    def commit(self: Spool, records: list[dict[str, object]]) -> None:
        stuck.wait()
        real(self, records)

    monkeypatch.setattr(Spool, "_commit", commit)
    spool = Spool(tmp_path / "spool.db", max_bytes=64 << 20)
    telemetry = Telemetry(spool)
    with Engine(config, recorder=telemetry) as engine:
        engine.load()
        for number in range(6000):
            engine.infer(MODEL, ONES)
            telemetry.event("seen", number=number)
        telemetry.flush()
        assert spool.stats()["records"] == 0
    stuck.set()
    spool.flush()
    kept = spool.stats()
    spool.close()
    assert kept["dropped"] > 0 and kept["records"] + kept["dropped"] == 6000 + len(("figures", "drops"))


def test_a_report_that_fails_undoes_no_update(repository: RepositorySimulator, config: AgentConfig) -> None:
    """The spool cannot be opened, and the collector is not there: the release is active all the same."""
    repository.publish("r1")
    (config.data_dir / "spool.db").mkdir(parents=True)
    (config.data_dir / "spool.db.damaged" / "in the way").mkdir(parents=True)
    settings = config.telemetry.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    (result,) = update_and_report(config.model_copy(update={"telemetry": settings}))
    state = store_for(config.data_dir, MODEL).load()
    assert result.outcome == "activated" and state.active is not None and state.active.release == "r1"
