"""A picture or a recording as it is, to a label: the manifest says how."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import numpy as np
import pytest

from device_agent.config import AgentConfig
from device_agent.engine import Engine
from device_agent.errors import RequestError
from device_agent.media import classification, feeds_of
from device_agent.server import Server
from device_agent.update import update_all
from tests.device_agent.test_server import call
from tests.runtimes.test_preprocess import wav
from tests.simulators.repository import MODEL, RepositorySimulator

AUDIO = {"kind": "audio", "sample_rate": 16000, "samples": 4}
LABELS = ("yes", "no", "stop", "go")
RECORDING = wav(np.array([0, 1 << 13, 1 << 14, -(1 << 14)], "<i2"))


@pytest.fixture
def running(repository: RepositorySimulator, config: AgentConfig) -> Iterator[tuple[Engine, str]]:
    repository.publish("r1", preprocessing=AUDIO, labels=LABELS)
    update_all(config)
    with Engine(config) as engine:
        assert not engine.load()
        server = Server(engine, config.server)
        server.start()
        yield engine, server.where()
        server.stop()


def test_a_recording_gets_a_label(running: tuple[Engine, str]) -> None:
    path, headers = f"/v2/models/{MODEL}/infer", {"Content-Type": "audio/wav"}
    status, _, body = call(running[1], "POST", path, RECORDING, headers)
    answer = json.loads(body)
    assert status == 200 and answer["model_version"] == "r1"
    np.testing.assert_allclose(answer["outputs"][0]["data"], np.array([0, 0.25, 0.5, -0.5]) * 2 + 1)
    logits = np.exp([1.0, 1.5, 2.0, 0.0])
    assert [c["label"] for c in answer["classification"]] == ["stop", "no", "yes", "go"]
    assert answer["classification"][0]["score"] == pytest.approx(logits[2] / logits.sum())


def test_a_picture_gets_a_label(repository: RepositorySimulator, config: AgentConfig) -> None:
    """PNG in, labels out: grey levels of 2 x 2 pixels become [1, 1, 2, 2] as the manifest says."""
    image = pytest.importorskip("PIL.Image")
    declared = {"kind": "image", "width": 2, "height": 2, "colour": "GRAY", "filter": "nearest"}
    repository.publish("r1", preprocessing=declared, labels=LABELS, shape=(None, 1, 2, 2))
    update_all(config)
    levels = np.array([[0, 51], [255, 102]], np.uint8)
    picture = io.BytesIO()
    image.fromarray(levels).save(picture, "PNG")
    with Engine(config) as engine:
        assert not engine.load()
        server = Server(engine, config.server)
        server.start()
        path, headers = f"/v2/models/{MODEL}/infer", {"Content-Type": "image/png"}
        status, _, body = call(server.where(), "POST", path, picture.getvalue(), headers)
        server.stop()
    answer = json.loads(body)
    assert status == 200 and answer["outputs"][0]["shape"] == [1, 1, 2, 2]
    np.testing.assert_allclose(answer["outputs"][0]["data"], levels.reshape(-1) / 255 * 2 + 1, rtol=1e-6)
    assert [c["label"] for c in answer["classification"]] == ["stop", "go", "no", "yes"]


@pytest.mark.parametrize("kind", ("audio/wav", "image/png"))
def test_what_is_no_recording_is_the_clients_fault(running: tuple[Engine, str], kind: str) -> None:
    status, _, body = call(running[1], "POST", f"/v2/models/{MODEL}/infer", b"nonsense", {"Content-Type": kind})
    assert status == 400 and "cannot be read" in json.loads(body)["error"]


def test_a_model_that_does_not_say_how_answers_415(repository: RepositorySimulator, config: AgentConfig) -> None:
    manifest = repository.publish("r1")
    with pytest.raises(RequestError, match="does not say how") as caught:
        feeds_of(manifest, RECORDING)
    assert caught.value.status == 415
    assert classification(manifest, {"y": np.zeros((1, 4))}) == []
