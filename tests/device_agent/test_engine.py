"""The engine with real releases: delegates that are absent or broken, limits, batches, guards; all of it counted."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agent.config import AgentConfig, load_config
from device_agent.engine import Engine
from device_agent.errors import DeadlineExceeded, RequestError
from device_agent.spool import Spool
from device_agent.store import confirm, store_for
from device_agent.telemetry import Telemetry
from device_agent.update import update_all
from runtimes import onnxruntime_session
from runtimes.errors import EdgewrightError, InferenceFailed
from tests.simulators.repository import MODEL, RepositorySimulator, toy_model

X = {"x": np.ones((1, 4), np.float32)}


def configured(config: AgentConfig, more: str) -> AgentConfig:
    """The fixture's configuration with keys added to its model."""
    path = config.data_dir.parent / "agent.toml"
    path.write_text(path.read_text().replace("[server]", f"{more}\n[server]"))
    return load_config(path)


@pytest.fixture
def spool(tmp_path: Path) -> Any:
    made = Spool(tmp_path / "spool.db", max_bytes=1 << 20)
    yield made
    made.close()


def told(spool: Spool, telemetry: Telemetry) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """Outcomes, fallbacks and events that telemetry holds."""
    telemetry.flush()
    spool.flush()
    outcomes: dict[str, int] = {}
    fallbacks: dict[str, int] = {}
    events: list[str] = []
    for stored in spool.batch(1000):
        record = stored.record
        if record["kind"] == "metrics":
            outcomes |= record["requests"]
            fallbacks |= record["fallbacks"]
        elif record["kind"] == "event":
            events.append(record["name"])
    return outcomes, fallbacks, events


def test_a_provider_that_is_not_there_gives_way_to_the_cpu(
    repository: RepositorySimulator, config: AgentConfig, spool: Spool
) -> None:
    repository.publish("r1")
    update_all(config)
    telemetry = Telemetry(spool)
    asked = configured(config, '[[models.accelerators]]\nprovider = "CUDAExecutionProvider"')
    with Engine(asked, recorder=telemetry) as engine:
        assert not engine.load()
        found = engine.answer(MODEL, X)
        engine.answer(MODEL, X)
        assert found.fallback == "cpu" and engine.stands_in(MODEL) == "cpu"
        np.testing.assert_array_equal(found.outputs["y"], 3 * np.ones((1, 4)))
        health = engine.health(MODEL)
    assert health is not None and (health[1].ok, health[1].failed) == (2, 0)
    assert told(spool, telemetry) == ({"ok": 2}, {"cpu": 2}, ["model.fallback"])


class Breaking:
    """Wraps a session of the real runtime; ``broken`` decides whether it runs."""

    def __init__(self, inner: Any, broken: list[bool]) -> None:
        self._inner, self._broken = inner, broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, feeds: Any) -> Any:
        if self._broken[0]:
            raise InferenceFailed("the device left.", remedy="None.")
        return self._inner.run(feeds)


@pytest.fixture
def breakable(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bool]]:
    """Sessions that a test can break, by "r1" or "r2": every session opened after ``opening`` was set belongs to it."""
    broken: dict[str, list[bool]] = {"r1": [False], "r2": [False]}
    real = onnxruntime_session.OPENER.open

    def opened(path: Path, options: Any) -> Any:
        # r2 multiplies by 5: its file holds that constant
        release = "r2" if path.read_bytes() == toy_model(5.0, 1.0) else "r1"
        return Breaking(real(path, options), broken[release])

    monkeypatch.setattr(onnxruntime_session.OPENER, "open", opened, raising=False)
    return broken


def two_releases(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=5.0)
    update_all(config)


def test_the_release_before_answers_for_one_that_breaks_and_then_the_constant(
    repository: RepositorySimulator, config: AgentConfig, spool: Spool, breakable: dict[str, list[bool]]
) -> None:
    two_releases(repository, config)
    telemetry = Telemetry(spool)
    with Engine(configured(config, "constant = {y = [0.0, 0.0, 0.0, 1.0]}"), recorder=telemetry) as engine:
        assert not engine.load()
        assert float(engine.infer(MODEL, X)["y"][0, 0]) == 6.0
        breakable["r2"][0] = True
        found = engine.answer(MODEL, X)
        assert (found.fallback, float(found.outputs["y"][0, 0])) == ("last-good", 3.0)
        breakable["r1"][0] = True
        found = engine.answer(MODEL, X)
        assert found.fallback == "constant" and found.outputs["y"].tolist() == [[0.0, 0.0, 0.0, 1.0]]
        health = engine.health(MODEL)
    assert health is not None and (health[1].ok, health[1].failed) == (1, 2), "a stand-in does not make a release good"
    assert told(spool, telemetry) == (
        {"ok": 1, "failed": 2},
        {"last-good": 1, "constant": 1},
        ["model.fallback", "model.fallback"],
    )


def test_without_a_stand_in_the_error_is_the_releases(
    repository: RepositorySimulator, config: AgentConfig, breakable: dict[str, list[bool]]
) -> None:
    repository.publish("r1")
    update_all(config)
    with Engine(config) as engine:
        engine.load()
        breakable["r1"][0] = True
        with pytest.raises(InferenceFailed, match="the device left"):
            engine.infer(MODEL, X)
        breakable["r1"][0] = False
        engine.infer(MODEL, X)


def test_a_release_that_cannot_be_opened_at_a_start_is_stood_in_for(
    repository: RepositorySimulator, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_releases(repository, config)
    real = onnxruntime_session.OPENER.open

    def opened(path: Path, options: Any) -> Any:
        if path.read_bytes() == toy_model(5.0, 1.0):
            raise onnxruntime_session.ModelLoadError("unreadable here.", remedy="None.")
        return real(path, options)

    monkeypatch.setattr(onnxruntime_session.OPENER, "open", opened, raising=False)
    with Engine(config) as engine:
        assert isinstance(engine.load()[MODEL], EdgewrightError)
        assert engine.answer(MODEL, X).fallback == "last-good" and engine.is_ready(MODEL)


def test_an_answer_that_comes_too_late_is_withheld(
    repository: RepositorySimulator, config: AgentConfig, monkeypatch: pytest.MonkeyPatch, spool: Spool
) -> None:
    repository.publish("r1")
    update_all(config)
    telemetry = Telemetry(spool)
    with Engine(config, recorder=telemetry) as engine:
        engine.load()
        with pytest.raises(DeadlineExceeded) as late:
            engine.answer(MODEL, X, timeout_s=0.0)
        health = engine.health(MODEL)
    assert late.value.status == 504 and health is not None and health[1].shed == 1
    assert told(spool, telemetry)[0] == {"late": 1}


def test_requests_of_many_clients_run_in_batches(
    repository: RepositorySimulator, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.publish("r1")
    update_all(config)
    with Engine(configured(config, "max_batch = 4\nmax_delay_ms = 1000.0")) as engine:
        engine.load()
        chain = engine._loaded[MODEL].chain
        sizes: list[int] = []
        answers: list[float] = []
        pool = chain._steps[0].pool
        assert pool is not None
        real = pool.run
        monkeypatch.setattr(pool, "run", lambda f, d=None: sizes.append(len(f["x"])) or real(f, d))
        threads = [
            threading.Thread(
                target=lambda v=v: answers.append(
                    float(engine.infer(MODEL, {"x": np.full((1, 4), v, np.float32)})["y"][0, 0]) - 2 * v
                )
            )
            for v in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert answers == [1.0] * 8 and sum(sizes) == 8 and max(sizes) > 1


def test_too_many_bytes_are_refused(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1")
    update_all(config)
    with Engine(configured(config, "max_input_bytes = 64")) as engine:
        engine.load()
        engine.infer(MODEL, {"x": np.ones((4, 4), np.float32)})
        with pytest.raises(RequestError) as refused:
            engine.infer(MODEL, {"x": np.ones((5, 4), np.float32)})
    assert refused.value.status == 413 and "80 bytes" in str(refused.value)


def test_constant_and_exploding_answers_raise_an_event_once(
    repository: RepositorySimulator, config: AgentConfig, spool: Spool
) -> None:
    # y = x * 0 + 1: the same whatever is asked
    repository.publish("r1", w=0.0, b=1.0)
    update_all(config)
    telemetry = Telemetry(spool)
    with Engine(config, recorder=telemetry) as engine:
        engine.load()
        for number in range(150):
            engine.infer(MODEL, {"x": np.full((1, 4), number % 90, np.float32)})
    assert told(spool, telemetry)[2] == ["output.constant"]


def test_several_models_each_with_its_slots(
    repository: RepositorySimulator, config: AgentConfig, tmp_path: Path
) -> None:
    """The second is configured and not installed: the first answers all the same."""
    repository.publish("r1")
    update_all(config)
    path = config.data_dir.parent / "agent.toml"
    path.write_text(path.read_text() + '[[models]]\nname = "other"\nprofile = "raspberry-pi-4b"\n')
    with Engine(load_config(path)) as engine:
        assert set(engine.load()) == {"other"}
        assert float(engine.infer(MODEL, X)["y"][0, 0]) == 3.0
        assert engine.names() == [MODEL, "other"] and not engine.is_ready("other")
