"""The truth comes back: remembered, counted, alerted on, bounded."""

from __future__ import annotations

import json

import numpy as np
import pytest

from device_agent.config import AgentConfig
from device_agent.engine import Engine
from device_agent.errors import RequestError
from device_agent.server import Server
from device_agent.truth import REMEMBERED, GroundTruth
from device_agent.update import update_all
from runtimes.artifact.manifest import Manifest
from runtimes.session import Array
from tests.device_agent.test_media import LABELS
from tests.device_agent.test_server import call, tensor
from tests.simulators.repository import MODEL, RepositorySimulator


@pytest.fixture
def manifest(repository: RepositorySimulator) -> Manifest:
    made = repository.publish("r1", labels=LABELS)
    artifact = made.artifacts[0].model_copy(update={"quality": {"accuracy": [0.9, 0.85, 0.95]}})
    return made.model_copy(update={"artifacts": (artifact,)})


def scores(best: int) -> dict[str, Array]:
    return {"y": np.eye(4, dtype=np.float32)[best : best + 1]}


def fed(manifest: Manifest, right: int, wrong: int) -> GroundTruth:
    truth = GroundTruth()
    for number in range(right + wrong):
        truth.remember(MODEL, str(number), manifest, manifest.artifacts[0].sha256, scores(1))
        assert truth.feed_back(MODEL, str(number), "no" if number < right else 3) is (number < right)
    return truth


@pytest.mark.parametrize(
    ("right", "wrong", "levels"),
    ((90, 10, ["ok"]), (86, 14, ["warning"]), (80, 20, ["critical"]), (95, 5, ["ok"]), (40, 50, [])),
)
def test_a_drop_in_accuracy_is_an_alert(manifest: Manifest, right: int, wrong: int, levels: list[str]) -> None:
    truth = fed(manifest, right, wrong)
    assert [alert.level for alert in truth.alerts()] == levels
    assert truth.counts() == {(MODEL, "r1"): (right, wrong)}
    assert truth.counts() == {}


def test_without_a_promise_there_is_nothing_to_drop_from(repository: RepositorySimulator) -> None:
    assert fed(repository.publish("r1", labels=LABELS), 10, 190).alerts() == []


def test_what_is_remembered_is_bounded_and_answered_once(manifest: Manifest) -> None:
    truth = GroundTruth()
    for number in range(REMEMBERED + 1):
        truth.remember(MODEL, str(number), manifest, None, scores(0))
    assert truth.feed_back(MODEL, "1", "yes")
    for request in ("0", "1", "never"):
        with pytest.raises(RequestError, match="is remembered") as caught:
            truth.feed_back(MODEL, request, "yes")
        assert caught.value.status == 404
    with pytest.raises(RequestError, match="no class 'perhaps'"):
        truth.feed_back(MODEL, "2", "perhaps")
    assert truth.feed_back(MODEL, "2", 0)  # a refused truth leaves the answer where it was


def test_batches_are_not_remembered(manifest: Manifest) -> None:
    truth = GroundTruth()
    truth.remember(MODEL, "a", manifest, None, {"y": np.zeros((2, 4), np.float32)})
    with pytest.raises(RequestError):
        truth.feed_back(MODEL, "a", 0)


def test_over_http(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1", labels=LABELS)
    update_all(config)
    with Engine(config) as engine:
        engine.load()
        server = Server(engine, config.server)
        server.start()
        try:
            path = f"/v2/models/{MODEL}"
            assert call(server.where(), "POST", f"{path}/infer", tensor([[0, 3, 1, 1]]))[0] == 200  # its id is 7
            body = json.dumps({"id": "7", "label": "no"}).encode()
            status, _, answer = call(server.where(), "POST", f"{path}/feedback", body)
            assert (status, json.loads(answer)) == (200, {"id": "7", "correct": True})
            assert call(server.where(), "POST", f"{path}/feedback", body)[0] == 404
            assert call(server.where(), "POST", f"{path}/feedback", b"[1]")[0] == 400
            assert call(server.where(), "POST", "/v2/models/none/feedback", body)[0] == 404
        finally:
            server.stop()
    assert engine.truth.counts() == {(MODEL, "r1"): (1, 0)}
