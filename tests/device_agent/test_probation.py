"""A release on probation: what makes it good, and what takes it back while it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from device_agent.config import AgentConfig, HealthConfig
from device_agent.drift import DriftReport
from device_agent.engine import Counts
from device_agent.health import Limits, at_start, in_service
from device_agent.service import Service
from device_agent.slots import SlotRef, State
from device_agent.store import Store, confirm, store_for
from device_agent.update import update_all
from tests.simulators.repository import MODEL, WIDTH, RepositorySimulator

POLICY = HealthConfig(confirm_after_s=60, confirm_requests=10, max_boots=3, max_error_rate=0.2, min_requests=20)
NEW = SlotRef("b", "r2", 2, "0" * 64)
PROBATION = State(active=NEW, previous=SlotRef("a", "r1", 1, "1" * 64))


@pytest.mark.parametrize(
    ("counts", "age_s", "limits", "action"),
    [
        (Counts(ok=10), 61, Limits(), "confirm"),
        (Counts(ok=9), 61, Limits(), "wait"),
        (Counts(ok=10), 59, Limits(), "wait"),
        (Counts(ok=15, failed=4), 1, Limits(), "wait"),  # too few to judge
        (Counts(ok=16, failed=4), 1, Limits(), "wait"),  # a fifth is allowed
        (Counts(ok=15, failed=5), 1, Limits(), "roll-back"),
        (Counts(ok=100, refused=1000, shed=1000), 61, Limits(), "confirm"),  # the clients' fault
        (Counts(ok=20, p95_ms=11), 61, Limits(latency_ms=10), "roll-back"),
        (Counts(ok=20, p95_ms=9), 61, Limits(latency_ms=10), "confirm"),
        (Counts(ok=10, p95_ms=11), 1, Limits(latency_ms=10), "wait"),
        (Counts(ok=10), 61, Limits(drifted="confidence"), "roll-back"),
    ],
)
def test_the_rule(counts: Counts, age_s: float, limits: Limits, action: str) -> None:
    assert in_service(PROBATION, counts, age_s, POLICY, limits).action == action
    assert in_service(PROBATION._replace(confirmed=True), counts, age_s, POLICY, limits).action == "wait"


def test_the_rule_at_a_start() -> None:
    assert [at_start(PROBATION._replace(boots=n), POLICY).action for n in (1, 3, 4)] == ["wait", "wait", "roll-back"]


def breaks_above(limit: float) -> bytes:
    """y = 2 x + 1, and NaN where x is larger: sound on its self-test, broken on what it meets in service."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        toy (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y)
            <float w = {{2.0}}, float b = {{1.0}}, float top = {{{limit!r}}}, float none = {{0.0}}> {{
            room = Sub(top, x)
            root = Sqrt(room)
            nothing = Mul(root, none)
            scaled = Mul(x, w)
            moved = Add(scaled, b)
            y = Add(moved, nothing)
        }}
    """)
    return model.SerializeToString()


@pytest.fixture
def store(repository: RepositorySimulator, config: AgentConfig) -> Store:
    """r1 is confirmed, r2 on probation."""
    repository.publish("r1")
    update_all(config)
    found = store_for(config.data_dir, MODEL)
    confirm(found)
    repository.publish("r2", breaks_above(50.0), self_test={"max_latency_ms": 5000.0})
    assert update_all(config)[0].outcome == "activated"
    return found


@pytest.fixture
def service(store: Store, config: AgentConfig, tmp_path: Path) -> Iterator[Service]:
    made = Service(config.model_copy(update={"repository": None}), tmp_path / "device" / "agent.toml")
    made.engine.load()
    yield made
    made.engine.close()
    made.spool.close()


def ask(service: Service, value: float, times: int) -> None:
    """Requests that are all answered, and rightly: by r2, or by r1 in its place."""
    for _ in range(times):
        y = service.engine.infer(MODEL, {"x": np.full((1, WIDTH), value, np.float32)})["y"]
        np.testing.assert_array_equal(y, np.full((1, WIDTH), 2 * value + 1, np.float32))


def events(service: Service) -> list[str]:
    service.spool.flush()
    batch = service.spool.next_batch(100)
    assert batch is not None
    return [str(stored.record.get("name")) for stored in batch.records]


def taken_back(service: Service, store: Store) -> bool:
    """What the last round did."""
    state = store.load()
    assert state.active is not None
    if state.active.release == "r2":
        assert not state.confirmed and state.floor == 1
        return False
    assert state.active.release == "r1" and [bad.release for bad in state.bad] == ["r2"]
    assert "release.rolled_back" in events(service)
    service.tick()
    ask(service, 60.0, 1)
    health = service.engine.health(MODEL)
    assert health is not None and (health[0].release, health[1].ok) == ("r1", 1)
    return True


def test_failing_requests_take_a_release_back(service: Service, store: Store) -> None:
    ask(service, 1.0, 10)
    ask(service, 60.0, 2)
    service.tick()
    assert not taken_back(service, store)
    ask(service, 60.0, 20)
    service.tick()
    assert taken_back(service, store)


def test_slow_answers_take_a_release_back(service: Service, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ref, _, age = service.engine.health(MODEL) or pytest.fail("nothing runs")
    slow = (ref, Counts(ok=30, p95_ms=5001.0), age)
    with monkeypatch.context() as patched:
        patched.setattr(service.engine, "health", lambda name: slow)
        service.tick()
    assert taken_back(service, store)


@pytest.mark.parametrize(("quantity", "goes"), [("confidence", True), ("input:x", False)])
def test_drifting_answers_take_a_release_back_and_drifting_inputs_do_not(
    service: Service, store: Store, monkeypatch: pytest.MonkeyPatch, quantity: str, goes: bool
) -> None:
    found = {f"{MODEL}/r2": [DriftReport(quantity, 1000, 0.5, 0.5, "critical")]}
    with monkeypatch.context() as patched:
        patched.setattr(service.telemetry, "drift", lambda: found)
        service.tick()
    assert taken_back(service, store) == goes
