"""Signed settings on the device: applied, refused, cleared, kept through crashes and damage."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from device_agent.api import update_and_report
from device_agent.config import AgentConfig, load_config
from device_agent.remote_config import FILES, effective
from device_agent.service import Service
from device_agent.spool import Spool
from device_agent.store import store_for
from device_agent.update import update_all
from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.settings import RULES, AgentSettings, read_settings, settings_path
from runtimes.errors import ManifestError
from tests.simulators.repository import CHANNEL, MODEL, RepositorySimulator

PATH = settings_path(CHANNEL)


def sign(repository: RepositorySimulator, settings: dict[str, Any] | None) -> None:
    repository.targets.pop(PATH, None)
    if settings is not None:
        repository.targets[PATH] = canonical_json({"schema": "edgewright.agent-settings/1", "settings": settings})
    repository.commit()


def file_of(config: AgentConfig) -> Path:
    return config.data_dir.parent / "agent.toml"


def events(config: AgentConfig) -> list[dict[str, Any]]:
    spool = Spool(config.data_dir / "spool.db", max_bytes=config.telemetry.spool_bytes)
    try:
        found = [dict(stored.record) for stored in spool.batch(1000)]
    finally:
        spool.close()
    return [event for event in found if str(event.get("name", "")).startswith("settings.")]


@pytest.fixture
def device(repository: RepositorySimulator, config: AgentConfig) -> AgentConfig:
    repository.publish("r1")
    update_all(config)
    return config


def test_signed_settings_lie_over_the_devices_own(repository: RepositorySimulator, device: AgentConfig) -> None:
    sign(repository, {"update.interval_s": 900, "update.windows": ["02:00-05:00"], "health.max_error_rate": 0.5})
    update_and_report(device)
    now = load_config(file_of(device))
    assert (now.update.interval_s, now.update.windows) == (900, ("02:00-05:00",))
    assert now.health.max_error_rate == 0.5
    assert now.update.reserve_bytes == device.update.reserve_bytes == 0  # from its own file
    sign(repository, {"update.interval_s": 1800})
    update_and_report(device)
    assert load_config(file_of(device)).update.windows == ()
    sign(repository, None)
    update_and_report(device)
    assert load_config(file_of(device)) == device
    assert [event["name"] for event in events(device)] == ["settings.applied", "settings.applied", "settings.cleared"]


@pytest.mark.parametrize(
    "settings",
    (
        {"update.interval_s": 1},
        {"update.interval_s": "often"},
        {"update.interval_s": True},
        {"update.attempts": 2.5},
        {"update.windows": ["whenever"]},
        {"update.windows": "02:00-05:00"},
        {"update.windows": ["02:00-05:00"] * 33},
        {"update.allow_delta": 1},
        {"health.max_error_rate": 2, "update.interval_s": 900},
    ),
)
def test_wrong_settings_are_refused_as_a_whole_and_told_once(
    repository: RepositorySimulator, device: AgentConfig, settings: dict[str, Any]
) -> None:
    sign(repository, {"update.interval_s": 700})
    update_and_report(device)
    sign(repository, settings)
    repository.publish("r2", w=5.0)
    for _ in range(2):
        update_and_report(device)  # they hold no release back
    assert load_config(file_of(device)).update.interval_s == 700
    said = events(device)
    assert [event["name"] for event in said] == ["settings.applied", "settings.refused"]
    active = store_for(device.data_dir, MODEL).load().active
    assert active is not None and active.release == "r2"


@pytest.mark.parametrize(
    "name",
    (
        "repository",
        "channel",
        "device_id",
        "data_dir",
        "telemetry.endpoint",
        "telemetry.headers",
        "server.host",
        "trial.max_tries",
        "update.remote",
        "models",
    ),
)
def test_what_would_turn_a_device_over_cannot_be_set(
    repository: RepositorySimulator, device: AgentConfig, name: str
) -> None:
    assert name not in RULES
    sign(repository, {name: "http://evil.example", "update.interval_s": 900})
    update_and_report(device)
    now = load_config(file_of(device))
    assert now.model_copy(update={"update": device.update}) == device and now.update.interval_s == 900
    assert name in json.dumps(events(device))


def test_a_device_that_takes_no_settings(repository: RepositorySimulator, device: AgentConfig) -> None:
    sign(repository, {"update.interval_s": 900})
    update_and_report(device)
    path = file_of(device)
    path.write_text(path.read_text().replace("[update]", "[update]\nremote = false"))
    own = load_config(path)
    assert own.update.interval_s == 3600
    update_and_report(own)
    assert not [name for name in FILES if (device.data_dir / name).exists()]


def test_settings_that_are_not_as_signed_leave_the_last_good_ones(
    repository: RepositorySimulator, device: AgentConfig
) -> None:
    sign(repository, {"update.interval_s": 900})
    update_and_report(device)
    sign(repository, {"update.interval_s": 1000})
    repository.target_file("settings.json").write_bytes(b"{}")
    update_and_report(device)
    assert load_config(file_of(device)).update.interval_s == 900


@pytest.mark.parametrize("content", (None, b"", b"\0" * 50, b"x" * 64 + b"\n{}"))
def test_one_damaged_copy_costs_nothing_and_two_are_fetched_again(
    repository: RepositorySimulator, device: AgentConfig, content: bytes | None
) -> None:
    sign(repository, {"update.interval_s": 900})
    update_and_report(device)
    for number, name in enumerate(FILES):
        path = device.data_dir / name
        path.unlink() if content is None else path.write_bytes(content)
        assert load_config(file_of(device)).update.interval_s == (900 if number == 0 else 3600)
    update_and_report(device)
    assert load_config(file_of(device)).update.interval_s == 900
    assert len({(device.data_dir / name).read_bytes() for name in FILES}) == 1


def test_a_power_cut_at_every_write_leaves_the_old_or_the_new(
    repository: RepositorySimulator, device: AgentConfig
) -> None:
    class PowerCut(BaseException):
        pass

    sign(repository, {"update.interval_s": 900})
    update_and_report(device)
    sign(repository, {"update.interval_s": 1000})
    rename = os.replace
    for when in ("before", "after"):
        for number, name in enumerate(FILES):

            def cut(source: Any, target: Any, *, name: str = name, when: str = when) -> None:
                if Path(target).name != name:
                    return rename(source, target)
                if when == "after":
                    rename(source, target)
                raise PowerCut

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "replace", cut)
                with pytest.raises(PowerCut):
                    update_all(device)
            expected = 900 if (when, number) == ("before", 0) else 1000
            assert load_config(file_of(device)).update.interval_s == expected
    update_and_report(device)
    assert len({(device.data_dir / name).read_bytes() for name in FILES}) == 1


def test_a_running_service_takes_them_without_a_restart(repository: RepositorySimulator, device: AgentConfig) -> None:
    service = Service(device, file_of(device))
    try:
        service._next_update = time.monotonic() + 3600
        service._settings()
        assert service.config.update.interval_s == 3600
        sign(repository, {"update.interval_s": 60, "telemetry.flush_interval_s": 5})
        update_all(device)
        service._settings()
        assert (service.config.update.interval_s, service.config.telemetry.flush_interval_s) == (60, 5)
        assert service._next_update <= time.monotonic() + 60
    finally:
        service.spool.close()


def test_every_rule_is_a_key_of_the_file_and_within_its_bounds(device: AgentConfig) -> None:
    for name, rule in RULES.items():
        section, _, key = name.partition(".")
        assert hasattr(getattr(device, section), key), name
        ends: list[Any] = [rule.low, rule.high]
        if rule.kind == "switch":
            ends = [False, True]
        elif rule.kind == "whole":
            ends = [int(rule.low), int(rule.high)]
        elif rule.kind == "windows":
            ends = [[], ["02:00-05:00"]]
        from device_agent.remote_config import overlay

        for value in ends:
            assert rule.objection(value) is None
            overlay(device, AgentSettings(settings={name: value}))


@pytest.mark.parametrize(
    "data",
    (
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"schema":"edgewright.agent-settings/1","settings":[]}',
        b'{"schema":"edgewright.agent-settings/2","settings":{}}',
        b'{"schema":"edgewright.agent-settings/1","settings":{"update.attempts":1,"update.attempts":2}}',
        b'{"schema":"edgewright.agent-settings/1","settings":{}}' + b" " * 70_000,
    ),
)
def test_absurd_settings_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        read_settings(data)


def test_a_file_of_another_version_counts_as_none(device: AgentConfig) -> None:
    import hashlib

    data = b'{"schema":"edgewright.agent-settings/9"}'
    for name in FILES:
        (device.data_dir / name).write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    assert effective(device) == device
