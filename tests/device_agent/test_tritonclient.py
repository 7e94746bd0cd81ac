"""Triton's own client, unmodified, against the agent: metadata, JSON tensors, the binary extension, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from device_agent.config import AgentConfig
from device_agent.engine import Engine
from device_agent.server import Server
from device_agent.update import update_all
from tests.simulators.repository import MODEL, RepositorySimulator

triton = pytest.importorskip("tritonclient.http")


@pytest.fixture
def client(repository: RepositorySimulator, config: AgentConfig) -> Iterator[Any]:
    repository.publish("r1")
    update_all(config)
    with Engine(config) as engine:
        engine.load()
        server = Server(engine, config.server)
        server.start()
        made = triton.InferenceServerClient(url=server.where().removeprefix("http://"))
        yield made
        made.close()
        server.stop()


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert client.get_server_metadata()["name"] == "edgewright-agent"
    metadata = client.get_model_metadata(MODEL, "r1")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


@pytest.mark.parametrize("binary_in", (False, True))
@pytest.mark.parametrize("binary_out", (False, True))
def test_inference(client: Any, binary_in: bool, binary_out: bool) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    given = triton.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary_in)
    wanted = triton.InferRequestedOutput("y", binary_data=binary_out)
    result = client.infer(MODEL, [given], outputs=[wanted], request_id="42")
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x + 1)
    assert result.get_response()["id"] == "42"


def test_every_output_is_binary_by_default(client: Any) -> None:
    x = np.ones((1, 4), np.float32)
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(x)
    np.testing.assert_array_equal(client.infer(MODEL, [given]).as_numpy("y"), 2 * x + 1)


def test_errors_are_the_clients_own(client: Any) -> None:
    x = np.ones((1, 5), np.float32)
    given = triton.InferInput("x", [1, 5], "FP32")
    given.set_data_from_numpy(x)
    with pytest.raises(triton.InferenceServerException, match="x"):
        client.infer(MODEL, [given])
    with pytest.raises(triton.InferenceServerException, match="No model"):
        client.get_model_metadata("none")
