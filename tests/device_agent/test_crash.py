"""Every persistent step of an update is cut, once by a power cut and once by a full disk; the device must recover."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agent import update as update_module
from device_agent.config import AgentConfig
from device_agent.store import confirm, store_for
from device_agent.trial import Verdict
from device_agent.update import update_all
from profiles.errors import EdgewrightError
from tests.simulators.repository import MODEL, RepositorySimulator


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it and go on."""


class Saboteur:
    """Counts the calls that reach the disk and fails at one of them, and at all later ones: a dead machine stays dead."""

    def __init__(self, patch: pytest.MonkeyPatch, failure: Callable[[], BaseException], *, once: bool) -> None:
        self.calls, self.fail_at, self.active = 0, -1, True
        self._failure, self._once = failure, once
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "link"), (Path, "rename"), (Path, "replace")):
            self._wrap(patch, owner, name)
        self._wrap(patch, Path, "mkdir")
        self._wrap(patch, Path, "unlink")

    def _wrap(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.active:
                self.calls += 1
                hit = self.calls == self.fail_at if self._once else 0 < self.fail_at <= self.calls
                if hit:
                    raise self._failure()
            return real(*args, **kwargs)

        patch.setattr(owner, name, wrapped)


@pytest.fixture
def device(repository: RepositorySimulator, config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> AgentConfig:
    """Runs r1, confirmed; r2 is published. Trials pass at once: the steps under test are those on the disk."""
    monkeypatch.setattr(update_module, "run_trial", lambda *a, **k: Verdict())
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=5.0)
    return config


def assert_something_good_is_active(config: AgentConfig) -> None:
    store = store_for(config.data_dir, MODEL)
    ref = store.load().active
    assert ref is not None and ref.release in ("r1", "r2")
    assert store.check(ref.slot) == ref, "the active slot is not whole"


def _sweep(device: AgentConfig, saboteur: Saboteur) -> int:
    fresh = device.data_dir.with_name("fresh")
    saboteur.active = False
    shutil.copytree(device.data_dir, fresh, symlinks=True)
    for step in range(1, 500):
        shutil.rmtree(device.data_dir)
        shutil.copytree(fresh, device.data_dir, symlinks=True)
        saboteur.calls, saboteur.fail_at, saboteur.active = 0, step, True
        try:
            update_all(device)
            reached = saboteur.calls >= step
        except (PowerCut, EdgewrightError, OSError):
            reached = True
        saboteur.active = False
        assert_something_good_is_active(device)
        update_all(device)
        assert_something_good_is_active(device)
        state = store_for(device.data_dir, MODEL).load()
        assert state.active is not None and state.active.release == "r2" and not state.bad, f"step {step}"
        if not reached:
            return step - 1
    raise AssertionError("the update never ends")


def test_power_cut_at_every_step(device: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _sweep(device, Saboteur(monkeypatch, PowerCut, once=False))
    assert steps > 30, f"only {steps} steps were seen: the sweep no longer reaches the disk"


def test_full_disk_at_every_step(device: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Saboteur(monkeypatch, lambda: OSError(errno.ENOSPC, "No space left on device"), once=True)
    assert _sweep(device, full) > 30


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "bit-flipped": lambda path: path.write_bytes(path.read_bytes().replace(b'"sequence":1', b'"sequence":3')),
}


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_state(device: AgentConfig, damage: str, both: bool) -> None:
    store = store_for(device.data_dir, MODEL)
    before = store.load()
    for name in ("state.json", "state.bak.json")[: 1 + both]:
        DAMAGE[damage](store.folder / name)
    assert store.recover() == before
    assert update_all(device)[0].outcome == "activated"


def test_rotten_active_slot_gives_way_to_the_previous(device: AgentConfig) -> None:
    update_all(device)
    store = store_for(device.data_dir, MODEL)
    ref = store.load().active
    assert ref is not None and ref.release == "r2"
    model = store.slot(ref.slot) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    state = store.recover()
    assert state.active is not None and state.active.release == "r1"


def test_a_trial_that_kills_the_board_is_counted(device: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*args: object, **kwargs: object) -> Verdict:
        raise PowerCut

    monkeypatch.setattr(update_module, "run_trial", dies)
    for _ in range(device.trial.max_tries):
        with pytest.raises(PowerCut):
            update_all(device)
    (result,) = update_all(device)
    assert result.outcome == "rejected" and "takes the device down" in result.reason
    assert_something_good_is_active(device)


def test_no_space_is_said_before_anything_is_fetched(device: AgentConfig) -> None:
    limits = device.update.model_copy(update={"reserve_bytes": 1 << 60})
    with pytest.raises(EdgewrightError, match="reserve"):
        update_all(device.model_copy(update={"update": limits}))
    assert_something_good_is_active(device)
