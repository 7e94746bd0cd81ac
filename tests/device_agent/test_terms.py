"""When a device takes a release: windows, versions; and what time it is where there is no clock."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_agent.clock import FLOOR_FILE, Clock
from device_agent.config import AgentConfig
from device_agent.errors import TrustError
from device_agent.store import confirm, store_for
from device_agent.update import TRUST_FOLDER, UpdateResult, update_all
from device_agent.version import MADE
from runtimes.artifact.index import Rollout
from tests.simulators.repository import MODEL, RepositorySimulator

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # where a board without a clock wakes up
OPENS = (datetime.now().astimezone() + timedelta(hours=3)).replace(minute=0)
CLOSED = f"{OPENS:%H:%M}-{OPENS + timedelta(minutes=90):%H:%M}"  # for as long as any run of these tests takes


def active(config: AgentConfig) -> str | None:
    state = store_for(config.data_dir, MODEL).load()
    return state.active.release if state.active is not None else None


def update(config: AgentConfig, clock: datetime | None = None, *, any_time: bool = False) -> UpdateResult:
    (result,) = update_all(config, clock=Clock(config.data_dir / TRUST_FOLDER, clock), any_time=any_time)
    return result


@pytest.fixture
def running(repository: RepositorySimulator, config: AgentConfig) -> AgentConfig:
    repository.publish("r1")
    update(config)
    confirm(store_for(config.data_dir, MODEL))
    return config


# --- windows and versions ----------------------------------------------------------------------------------------------


def test_a_release_waits_for_its_window(repository: RepositorySimulator, running: AgentConfig) -> None:
    repository.publish("r2", w=5.0, rollout=Rollout(windows=(CLOSED,)))
    result = update(running)
    assert (result.outcome, active(running)) == ("current", "r1") and "release's maintenance window" in result.reason
    assert not list(store_for(running.data_dir, MODEL).downloads.iterdir())
    assert update(running, OPENS + timedelta(minutes=30)).outcome == "activated"


def test_a_device_waits_for_its_own_window_and_a_person_need_not(
    repository: RepositorySimulator, running: AgentConfig
) -> None:
    own = running.model_copy(update={"update": running.update.model_copy(update={"windows": (CLOSED,)})})
    repository.publish("r2", w=5.0)
    assert "this device's maintenance window" in update(own).reason
    assert update(own, any_time=True).outcome == "activated"


def test_the_first_release_waits_for_no_window(repository: RepositorySimulator, config: AgentConfig) -> None:
    repository.publish("r1", rollout=Rollout(windows=(CLOSED,)))
    assert update(config).outcome == "activated"


def test_a_window_that_cannot_be_read_stays_closed(repository: RepositorySimulator, running: AgentConfig) -> None:
    repository.publish("r2", w=5.0, rollout=Rollout(windows=("when it rains",)))
    assert "cannot be read" in update(running).reason and active(running) == "r1"


def test_a_device_that_knows_no_time_waits_for_no_window(repository: RepositorySimulator, running: AgentConfig) -> None:
    repository.publish("r2", w=5.0, rollout=Rollout(windows=(CLOSED,)))
    assert update(running, EPOCH).outcome == "activated"


@pytest.mark.parametrize("terms", ({"min_agent": "9"}, {"min_runtimes": {"onnxruntime": "99"}, "min_agent": None}))
def test_a_release_for_newer_devices_is_left(
    repository: RepositorySimulator, running: AgentConfig, terms: dict[str, object]
) -> None:
    only = running.model_copy(update={"models": (running.models[0].model_copy(update={"runtime": "onnxruntime"}),)})
    repository.publish("r2", w=5.0, rollout=Rollout.model_validate({k: v for k, v in terms.items() if v is not None}))
    assert update(only).outcome == "current" and active(only) == "r1"


# --- no clock ----------------------------------------------------------------------------------------------------------


def test_without_a_clock_an_update_that_has_not_ended_before_the_floor_is_taken(
    repository: RepositorySimulator, config: AgentConfig
) -> None:
    repository.publish("r1")
    assert update(config, EPOCH).outcome == "activated"


def test_what_ended_before_the_agent_was_made_is_refused_without_a_clock(
    repository: RepositorySimulator, config: AgentConfig
) -> None:
    repository.expires = MADE - timedelta(days=1)
    repository.publish("r1")
    with pytest.raises(TrustError, match="expired"):
        update(config, EPOCH)


def test_the_floor_outlives_the_clock(repository: RepositorySimulator, running: AgentConfig) -> None:
    """A device that once knew the time refuses what ended before it, though its clock now says 1970."""
    repository.expires = datetime.now(UTC) - timedelta(minutes=90)
    repository.publish("r2", w=5.0)
    with pytest.raises(TrustError, match="expired"):
        update(running, EPOCH)
    assert active(running) == "r1"
    clock = Clock(running.data_dir / TRUST_FOLDER, EPOCH)
    assert clock.now() == clock.floor() > MADE and clock.local() is None


def test_a_device_without_a_clock_learns_the_time_from_what_was_signed(
    repository: RepositorySimulator, config: AgentConfig
) -> None:
    signed = datetime.now(UTC).replace(microsecond=0)
    repository.signed_at = int(signed.timestamp())
    repository.publish("r1")
    update(config, EPOCH)
    assert Clock(config.data_dir / TRUST_FOLDER, EPOCH).now() == signed


def test_no_signed_time_lifts_the_floor_past_the_first_end(
    repository: RepositorySimulator, config: AgentConfig
) -> None:
    """Whoever holds the timestamp's key cannot lock devices out for good."""
    repository.signed_at = int((repository.expires + timedelta(days=3650)).timestamp())
    repository.publish("r1")
    update(config, EPOCH)
    assert Clock(config.data_dir / TRUST_FOLDER, EPOCH).floor() == repository.expires - timedelta(hours=1)
    repository.expires += timedelta(days=30)  # what the publisher signs next; the root is as it was
    repository.signed_at = None
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=5.0)
    assert update(config, EPOCH).outcome == "activated"


def test_a_clock_that_jumps_ahead_locks_nothing_out(repository: RepositorySimulator, running: AgentConfig) -> None:
    with pytest.raises(TrustError, match="expired"):
        update(running, datetime.now(UTC) + timedelta(days=3000))
    repository.publish("r2", w=5.0)
    assert update(running).outcome == "activated"


@pytest.mark.parametrize("content", (b"", b"{}", b'{"floor_s": "x"}', b'{"floor_s": 1e99}', b"[" * 5000, bytes(100)))
def test_a_damaged_floor_is_the_agents_own_date(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FLOOR_FILE).write_bytes(content)
    assert Clock(tmp_path, EPOCH).now() == MADE


def test_the_floor_never_goes_back_and_is_written_seldom(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    Clock(tmp_path, now).lift(None, now + timedelta(days=30))
    kept = json.loads((tmp_path / FLOOR_FILE).read_bytes())["floor_s"]
    for earlier in (now - timedelta(days=5), EPOCH, now + timedelta(minutes=10)):
        Clock(tmp_path, earlier).lift(None, now + timedelta(days=30))
        assert json.loads((tmp_path / FLOOR_FILE).read_bytes())["floor_s"] == kept
