"""Requests that come together run together, and get their own answers back."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from device_agent.batching import Batcher, can_batch
from device_agent.chain import Answered
from device_agent.errors import DeadlineExceeded
from runtimes.artifact.manifest import Manifest
from runtimes.errors import InferenceFailed
from runtimes.session import Feeds
from tests.runtimes.artifact.test_documents import MINIMAL


def feeds(value: float, rows: int = 1, width: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, width), value, np.float32)}


class Model:
    """Doubles; remembers the sizes of its batches, and fails on any that holds a 13."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, asked: Feeds, deadline: float | None) -> Answered:
        self.batches.append(len(asked["x"]))
        if (asked["x"] == 13).any():
            raise InferenceFailed("13.", remedy="None.")
        return Answered({"y": asked["x"] * 2}, "cpu", True)


def together(batcher: Batcher, values: list[float], **shape: int) -> list[object]:
    """Ask all at the same moment, each in a thread of its own; answers or errors in order."""
    start, found = threading.Barrier(len(values)), list[object]([None] * len(values))

    def ask(place: int) -> None:
        start.wait(10)
        try:
            found[place] = batcher.run(feeds(values[place], **shape)).outputs["y"]
        except InferenceFailed as error:
            found[place] = error

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(values))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_a_full_group_runs_once_without_waiting_and_answers_come_back_in_place() -> None:
    model = Model()
    found = together(Batcher(model.run, 4, max_delay_s=20.0), [1.0, 2.0, 3.0, 4.0])
    assert model.batches == [4]
    for value, answer in zip((1.0, 2.0, 3.0, 4.0), found, strict=True):
        np.testing.assert_array_equal(answer, np.full((1, 2), 2 * value))  # type: ignore[arg-type]


def test_alone_it_waits_no_longer_than_it_may() -> None:
    model = Model()
    assert Batcher(model.run, 8, max_delay_s=0.0).run(feeds(5.0)).outputs["y"][0, 0] == 10
    assert model.batches == [1]


def test_a_sample_that_breaks_the_batch_fails_alone() -> None:
    model = Model()
    found = together(Batcher(model.run, 3, max_delay_s=20.0), [1.0, 13.0, 3.0])
    assert model.batches[0] == 3 and sorted(model.batches[1:]) == [1, 1, 1]
    assert isinstance(found[1], InferenceFailed)
    assert [float(a[0, 0]) for a in (found[0], found[2])] == [2.0, 6.0]  # type: ignore[index]


def test_what_does_not_fit_runs_beside() -> None:
    model = Model()
    batcher = Batcher(model.run, 4, max_delay_s=0.0)
    assert len(batcher.run(feeds(1.0, rows=9)).outputs["y"]) == 9
    odd = {"x": np.ones((2, 2), np.float32), "z": np.ones((3, 2), np.float32)}
    batcher.run(odd)
    assert model.batches == [9, 2]


def test_a_follower_gives_up_at_its_deadline() -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(asked: Feeds, deadline: float | None) -> Answered:
        inside.set()
        leave.wait(10)
        return Answered({"y": asked["x"]}, "cpu", True)

    batcher = Batcher(slow, 2, max_delay_s=20.0)
    leader = threading.Thread(target=batcher.run, args=(feeds(1.0),))
    leader.start()
    while batcher._open is None:
        threading.Event().wait(0.001)
    with pytest.raises(DeadlineExceeded):
        batcher.run(feeds(2.0), deadline=0.0)
    leave.set()
    leader.join(10)
    assert inside.is_set()


@pytest.mark.parametrize(("shape", "fits"), [([None, 2], True), ([1, 2], False), ([], False)])
def test_only_models_with_a_free_first_axis_everywhere(shape: list[int | None], fits: bool) -> None:
    spec = {"name": "t", "dtype": "float32"}
    document = MINIMAL | {"inputs": [spec | {"shape": [None, 2]}], "outputs": [spec | {"shape": shape}]}
    assert can_batch(Manifest.model_validate(document)) is fits
