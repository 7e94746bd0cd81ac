"""Settings of a channel's agents, from the publisher's side, up to a device that takes them from a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compiler.cli.release import release
from compiler.errors import PublishError
from compiler.publish.client import verify
from compiler.publish.configure import configure, settings_of
from compiler.publish.manage import prune
from compiler.publish.release import Signing, publish
from compiler.publish.repository import load
from tests.compiler.publish.conftest import Build, tree


def now(repo: Path, channel: str = "stable") -> dict[str, Any]:
    return settings_of(load(repo), channel)


def test_settings_come_and_go(repo: Path, build: Build, signing: Signing) -> None:
    publish(build(), repo, signing, channel="stable", release="1")
    configure(repo, signing, channel="stable", change={"update.interval_s": 900, "update.windows": ["02:00-05:00"]})
    configure(repo, signing, channel="stable", change={"update.attempts": 3}, unset=["update.windows"])
    assert now(repo) == {"update.interval_s": 900, "update.attempts": 3} and now(repo, "beta") == {}
    assert verify(repo).releases == {"stable/toy": ("1",)}
    prune(repo, signing, keep=1, grace_hours=0)
    assert now(repo) == {"update.interval_s": 900, "update.attempts": 3}
    configure(repo, signing, channel="stable", change={"update.jitter": 0.5}, replace=True)
    assert now(repo) == {"update.jitter": 0.5}
    configure(repo, signing, channel="stable", replace=True)
    assert now(repo) == {}
    verify(repo)


@pytest.mark.parametrize(
    ("options", "said"),
    (
        ({"change": {"telemetry.endpoint": "http://x"}}, "cannot be set from afar"),
        ({"change": {"update.interval_s": 1}}, "from 60"),
        ({"change": {"update.windows": ["never"]}}, "is no window"),
        ({"unset": ["update.jitter"]}, "is not set"),
        ({}, "set so already"),
        ({"change": {"update.jitter": float("nan")}}, "jitter"),
    ),
)
def test_what_agents_would_refuse_is_not_signed(
    repo: Path, signing: Signing, options: dict[str, Any], said: str
) -> None:
    (repo / ".lock").touch()
    before = tree(repo)
    with pytest.raises((PublishError, ValueError), match=said):
        configure(repo, signing, channel="stable", **options)
    assert tree(repo) == before


def test_the_command(repo: Path, signing: Signing, tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        fixed = [str(repo), "--keys", str(signing.keys), "--no-password"]
        return CliRunner().invoke(release, ["configure", *fixed, *map(str, arguments)], catch_exceptions=False)

    done = run("--set", "update.interval_s=900", "--set", 'update.windows=["sat 02:00-05:00"]', "--json")
    assert json.loads(done.stdout)["settings"] == {"update.interval_s": 900, "update.windows": ["sat 02:00-05:00"]}
    shown = CliRunner().invoke(release, ["show", str(repo)])
    assert "stable agents: update.interval_s = 900" in shown.output
    (tmp_path / "settings.toml").write_text("[health]\nconfirm_after_s = 60\n[update]\nallow_delta = false\n")
    assert "allow_delta = False" in run("--file", tmp_path / "settings.toml").output
    assert now(repo) == {"health.confirm_after_s": 60, "update.allow_delta": False}
    assert "0 setting(s)" in run("--clear").output
    assert run().exit_code == 2 and run("--set", "update.jitter").exit_code == 2
