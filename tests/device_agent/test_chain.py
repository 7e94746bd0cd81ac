"""accelerator -> CPU -> last good release -> constant: who answers, what rests, and what is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from device_agent.chain import REST_S, Chain, Step, constant_answer
from device_agent.errors import ConfigError, DeadlineExceeded, Overloaded
from device_agent.pool import Pool
from runtimes.artifact.manifest import Manifest
from runtimes.errors import InferenceFailed, RuntimeMissing
from tests.runtimes.artifact.test_documents import MINIMAL

X = {"x": np.ones((1, 2), np.float32)}
MANIFEST = Manifest.model_validate(
    MINIMAL | {"outputs": [{"name": "y", "dtype": "float32", "shape": [None, 2]}]},
)


class Fake:
    """A session whose answers and failures a test decides."""

    def __init__(self, run: Callable[[Any], Any]) -> None:
        self.run, self.closed = run, False

    def close(self) -> None:
        self.closed = True


def answers(value: float) -> Callable[[Any], Any]:
    return lambda feeds: {"y": np.full((1, 2), value, np.float32)}


def fails(feeds: Any) -> Any:
    raise InferenceFailed("the delegate broke.", remedy="None.")


def step(name: str, run: Callable[[Any], Any], *, own: bool = True) -> Step:
    return Step(name, lambda: Pool([Fake(run)], waiting=4), own=own)  # type: ignore[list-item]


def absent() -> Pool:
    raise RuntimeMissing("no such delegate.", remedy="None.")


def test_the_first_step_answers_and_the_others_stay_closed() -> None:
    opened: list[str] = []
    second = Step("cpu", lambda: opened.append("cpu") or absent())  # type: ignore[func-returns-value]
    chain = Chain([step("gpu", answers(1.0)), second], MANIFEST)
    chain.open_first()
    found = chain.run(X)
    assert (found.step, found.own, found.failures, found.magnitude) == ("gpu", True, (), 1.0) and not opened


def test_a_delegate_that_cannot_be_opened_gives_way() -> None:
    chain = Chain([Step("gpu", absent), step("cpu", answers(2.0))], MANIFEST)
    chain.open_first()
    found = chain.run(X)
    assert found.step == "cpu" and found.own and found.failures[0][0] == "gpu"


def test_a_step_that_failed_rests_and_is_tried_again() -> None:
    now, broken, tries = [0.0], [True], [0]

    def flaky(feeds: Any) -> Any:
        tries[0] += 1
        return fails(feeds) if broken[0] else answers(1.0)(feeds)

    chain = Chain([step("gpu", flaky), step("cpu", answers(2.0))], MANIFEST, clock=lambda: now[0])
    assert [chain.run(X).step for _ in range(3)] == ["cpu"] * 3 and tries == [1]
    broken[0], now[0] = False, REST_S + 1
    assert chain.run(X).step == "gpu"


def test_an_answer_that_is_not_finite_counts_as_a_failure() -> None:
    chain = Chain([step("gpu", answers(np.nan)), step("cpu", answers(3.0))], MANIFEST)
    assert chain.run(X).step == "cpu"


def test_last_good_then_constant_then_the_releases_own_error() -> None:
    last = step("last-good", answers(4.0), own=False)
    assert not Chain([step("cpu", fails), last], MANIFEST).run(X).own
    broken = [step("cpu", fails), step("last-good", fails, own=False)]
    found = Chain(broken, MANIFEST, {"y": [0.0, 1.0]}).run({"x": np.ones((3, 2), np.float32)})
    assert found.step == "constant" and found.outputs["y"].tolist() == [[0.0, 1.0]] * 3
    with pytest.raises(InferenceFailed, match="the delegate broke"):
        Chain([step("cpu", fails)], MANIFEST).run(X)


def test_a_lone_step_never_rests() -> None:
    """There is nothing else to ask meanwhile."""
    broken = [True]
    chain = Chain([step("cpu", lambda feeds: fails(feeds) if broken[0] else answers(1.0)(feeds))], MANIFEST)
    with pytest.raises(InferenceFailed):
        chain.run(X)
    broken[0] = False
    assert chain.run(X).step == "cpu"


def test_all_resting_says_so() -> None:
    chain = Chain([step("gpu", fails), step("cpu", fails)], MANIFEST)
    with pytest.raises(InferenceFailed, match="the delegate broke"):
        chain.run(X)
    with pytest.raises(InferenceFailed, match=r"rests: gpu .* cpu"):
        chain.run(X)


@pytest.mark.parametrize("declared", [{}, {"y": [1.0, 2.0, 3.0]}])
def test_a_constant_that_does_not_fit_is_refused_at_once(declared: dict[str, list[float]]) -> None:
    with pytest.raises(ConfigError, match="constant"):
        Chain([step("cpu", answers(1.0))], MANIFEST, declared)
    assert constant_answer(MANIFEST, {"y": [7.0]}, 2)["y"].tolist() == [[7.0, 7.0]] * 2


def test_a_full_queue_refuses_and_a_deadline_ends_the_wait() -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(feeds: Any) -> Any:
        inside.set()
        leave.wait(10)
        return answers(1.0)(feeds)

    pool = Pool([Fake(slow)], waiting=1)  # type: ignore[list-item]
    chain = Chain([Step("cpu", lambda: pool), step("last-good", answers(9.0), own=False)], MANIFEST)
    holder = threading.Thread(target=chain.run, args=(X,))
    holder.start()
    assert inside.wait(10)
    with pytest.raises(DeadlineExceeded) as late:
        chain.run(X, deadline=0.0)
    waiter = threading.Thread(target=chain.run, args=(X,))
    waiter.start()
    while not pool._waiting:
        threading.Event().wait(0.001)
    with pytest.raises(Overloaded) as full:
        chain.run(X)
    assert (late.value.status, full.value.status) == (504, 503)
    assert pool.longest_run_s() > 0
    leave.set()
    for thread in (holder, waiter):
        thread.join(10)
    assert pool.longest_run_s() == 0
    chain.close()


def test_closing_waits_for_the_request_inside() -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(feeds: Any) -> Any:
        inside.set()
        leave.wait(10)
        return {}

    session = Fake(slow)
    pool = Pool([session], waiting=1)  # type: ignore[list-item]
    runner = threading.Thread(target=pool.run, args=(X,))
    runner.start()
    inside.wait(10)
    closer = threading.Thread(target=pool.close)
    closer.start()
    assert not session.closed
    leave.set()
    closer.join(10)
    runner.join(10)
    assert session.closed
