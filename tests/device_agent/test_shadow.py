"""A candidate in the shadow of the active release: compared, never returned, taken or refused by its signed terms."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from device_agent.config import AgentConfig
from device_agent.service import Service
from device_agent.shadow import WAITING, Shadow, Terms, leave_terms, terms_of
from device_agent.store import Store, confirm, store_for
from device_agent.update import update_all
from runtimes.artifact.index import Rollout
from runtimes.session import Array, Feeds
from tests.simulators.repository import MODEL, RepositorySimulator, toy_model

ONES = {"x": np.ones((1, 4), np.float32)}
SHADOWED = Rollout(shadow_requests=20, shadow_agreement=0.9)


@pytest.fixture
def store(repository: RepositorySimulator, config: AgentConfig) -> Store:
    """Runs r1: y = 2 x + 1."""
    repository.publish("r1")
    update_all(config)
    found = store_for(config.data_dir, MODEL)
    confirm(found)
    return found


@pytest.fixture
def service(config: AgentConfig, tmp_path: Path) -> Iterator[Service]:
    made = Service(config.model_copy(update={"repository": None}), tmp_path / "device" / "agent.toml")
    made.engine.load()
    yield made
    made.engine.close()
    made.spool.close()


def ask(service: Service, count: int) -> None:
    """Requests that vary, so that classes do too; every answer is the active release's."""
    rng = np.random.default_rng(count)
    for _ in range(count):
        x = rng.standard_normal((1, 4)).astype(np.float32)
        np.testing.assert_array_equal(service.engine.infer(MODEL, {"x": x})["y"], 2 * x + 1)
        time.sleep(0.002)  # the queue is short, and what does not fit is let go


def settle(service: Service, at_least: int) -> None:
    deadline = time.monotonic() + 10
    while (shadow := service.engine.shadow(MODEL)) and time.monotonic() < deadline:
        if shadow.counts.compared + shadow.counts.failed >= at_least:
            return
        time.sleep(0.01)


def release(store: Store) -> str:
    active = store.load().active
    assert active is not None
    return active.release


def test_a_candidate_that_agrees_is_taken(
    repository: RepositorySimulator, config: AgentConfig, store: Store, service: Service
) -> None:
    repository.publish("r2", w=4.0, rollout=SHADOWED)  # other values, the same classes
    assert update_all(config)[0].outcome == "shadowing"
    (again,) = update_all(config)
    assert again.outcome == "current" and "in the shadow of r1" in again.reason
    service.tick()
    ask(service, 10)
    service.tick()
    assert release(store) == "r1"
    ask(service, 40)
    settle(service, 20)
    service.tick()
    assert release(store) == "r2" and store.load().previous is not None
    service.tick()
    np.testing.assert_array_equal(service.engine.infer(MODEL, ONES)["y"], 4 * ONES["x"] + 1)
    assert service.engine.shadow(MODEL) is None


def test_a_candidate_that_disagrees_is_refused_for_good(
    repository: RepositorySimulator, config: AgentConfig, store: Store, service: Service
) -> None:
    repository.publish("r2", toy_model(-2.0, 1.0), w=-2.0, rollout=SHADOWED)
    update_all(config)
    service.tick()
    ask(service, 60)
    settle(service, 20)
    service.tick()
    state = store.load()
    assert release(store) == "r1" and state.candidate is None and "agreed" in state.bad[0].reason
    assert update_all(config)[0].outcome == "current"


def test_a_newer_release_ends_the_shadow(
    repository: RepositorySimulator, config: AgentConfig, store: Store, service: Service
) -> None:
    repository.publish("r2", w=4.0, rollout=SHADOWED)
    update_all(config)
    service.tick()
    assert service.engine.shadow(MODEL) is not None
    repository.publish("r3", w=3.0)
    assert update_all(config)[0].outcome == "activated"
    assert service.engine.shadow(MODEL) is None
    assert release(store) == "r3"


def test_the_first_release_has_nothing_to_be_shadowed_by(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1", rollout=SHADOWED)
    assert update_all(config)[0].outcome == "activated"


def test_a_restart_begins_to_count_anew(
    repository: RepositorySimulator, config: AgentConfig, store: Store, service: Service
) -> None:
    repository.publish("r2", w=4.0, rollout=SHADOWED)
    update_all(config)
    state = store.recover()
    assert state.candidate is not None and terms_of(store, state.candidate) == Terms(20, 0.9)
    assert update_all(config)[0].outcome == "current"
    stranger = state.candidate.__class__("b", "x", 9, "0" * 64)
    assert terms_of(store, stranger) is None


class _Slow:
    """A session that takes its time, or fails."""

    def __init__(self, seconds: float, outputs: Feeds) -> None:
        self.seconds, self.outputs, self.closed = seconds, outputs, False

    def run(self, feeds: Feeds) -> dict[str, Array]:
        time.sleep(self.seconds)
        return dict(self.outputs)

    def close(self) -> None:
        self.closed = True


def test_live_requests_wait_for_nothing(repository: RepositorySimulator, store: Store) -> None:
    manifest = repository.publish("r2")
    active = store.load().active
    assert active is not None
    slow = _Slow(0.05, {"y": np.zeros((1, 4), np.float32)})
    shadow = Shadow(active, slow, manifest, Terms(5, 1.0))  # type: ignore[arg-type]
    start = time.perf_counter()
    for _ in range(100):
        shadow.observe(ONES, {"y": np.zeros((1, 4), np.float32)})
    assert time.perf_counter() - start < 0.05
    assert shadow.counts.dropped >= 100 - WAITING - 2
    shadow.close()
    assert slow.closed, "a full queue keeps no session open"
    assert shadow.counts.compared <= 2, "what still waited is let go"


def test_an_answer_that_is_not_finite_counts_as_failed(repository: RepositorySimulator, store: Store) -> None:
    manifest = repository.publish("r2")
    active = store.load().active
    assert active is not None
    shadow = Shadow(active, _Slow(0, {"y": np.full((1, 4), np.nan, np.float32)}), manifest, Terms(2, 0.5))  # type: ignore[arg-type]
    for _ in range(2):
        shadow.observe(ONES, {"y": np.zeros((1, 4), np.float32)})
    deadline = time.monotonic() + 5
    while shadow.verdict() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert shadow.verdict() == (False, "0 of 2 answers beside the active release agreed, 2 failed")
    shadow.close()
    leave_terms(store, active, Terms(1, 1.0))
