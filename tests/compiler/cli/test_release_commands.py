"""The release and delta commands: one story end to end, documents for pipelines, passwords, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compiler.cli.delta import delta
from compiler.cli.release import release
from compiler.errors import OutputExists, PublishError
from compiler.publish.keys import PASSWORD_VARIABLE
from profiles.errors import EdgewrightError, ExitCode
from runtimes.artifact.manifest import read_manifest
from runtimes.errors import DeltaBaseMismatch
from tests.compiler.publish.conftest import write_build


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


def _run(group: Any, *args: object) -> str:
    return CliRunner().invoke(group, [str(a) for a in args], catch_exceptions=False).stdout


def _json(group: Any, schema: str, *args: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_run(group, *args, "--json"))
    assert document["schema"] == schema
    return document


def test_the_whole_story(tmp_path: Path) -> None:
    repo, keys = tmp_path / "repo", ("--keys", tmp_path / "keys")
    assert "move" in _run(release, "init", repo, *keys)
    for number, noise in ((1, 0.0), (2, 0.3)):
        (tmp_path / f"b{number}").mkdir()
        write_build(tmp_path / f"b{number}", seed=number, noise=noise)
    assert "sequence 1" in _run(release, "publish", tmp_path / "b1", repo, *keys, "--release", "1")
    second = _json(
        release, "edgewright.published/1", "publish", tmp_path / "b2", repo, *keys, "--release", "2", "--percent", 10
    )
    assert second["sequence"] == 2 and second["deltas"]
    where = ("--model", "toy", "--release", "2")
    assert "50 %" in _run(release, "rollout", repo, *keys, *where, "--percent", 50)
    changed = _json(release, "edgewright.rollout/1", "rollout", repo, *keys, *where, "--halt")
    assert (changed["percent"], changed["halted"]) == (50, True)
    checked = _json(release, "edgewright.verified/1", "verify", repo)
    assert checked["releases"] == {"stable/toy": ["1", "2"]}
    assert "all as signed" in _run(release, "verify", repo, "--root", repo / "metadata" / "1.root.json")
    shown = _json(release, "edgewright.repository/1", "show", repo)
    assert [(r["release"], r["halted"], bool(r["deltas"])) for r in shown["releases"]] == [
        ("1", False, False),
        ("2", True, True),
    ]
    assert "halted" in _run(release, "show", repo)
    assert _json(release, "edgewright.refreshed/1", "refresh", repo, *keys, "--all")["expires"].endswith("Z")
    assert "Devices accept" in _run(release, "refresh", repo, *keys)


def test_without_password_and_terminal_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE)
    with pytest.raises(PublishError, match="need a password"):
        _run(release, "init", tmp_path / "repo", "--keys", tmp_path / "keys")
    assert not any(tmp_path.iterdir())
    result = CliRunner().invoke(
        release, ["init", str(tmp_path / "repo"), "--keys", str(tmp_path / "keys"), "--no-password", "--json"]
    )
    assert json.loads(result.stdout)["encrypted"] is False
    assert "NOT encrypted" in result.stderr


def test_rollout_without_a_change_is_a_usage_error(tmp_path: Path) -> None:
    arguments = ["rollout", str(tmp_path), "--keys", str(tmp_path), "--model", "m", "--release", "1"]
    assert CliRunner().invoke(release, arguments).exit_code == ExitCode.USAGE


def test_a_tampered_repository_is_a_trust_error(tmp_path: Path) -> None:
    _run(release, "init", tmp_path / "repo", "--keys", tmp_path / "keys")
    (tmp_path / "repo" / "metadata" / "timestamp.json").write_text("{}")
    for command in ("verify", "show"):
        with pytest.raises(EdgewrightError) as caught:
            _run(release, command, tmp_path / "repo")
        assert caught.value.exit_code == ExitCode.TRUST


def test_delta_encode_and_apply(tmp_path: Path) -> None:
    old, new, patch, out = (tmp_path / name for name in ("old", "new", "patch", "out"))
    old.write_bytes(bytes(range(256)) * 50)
    new.write_bytes(bytes(range(256)) * 51)
    report = _json(delta, "edgewright.delta/1", "encode", old, new, "-o", patch)
    assert report["size_bytes"] == patch.stat().st_size
    applied = _json(delta, "edgewright.delta-applied/1", "apply", old, patch, "-o", out)
    assert applied["sha256"] == report["result_sha256"]
    assert out.read_bytes() == new.read_bytes()
    with pytest.raises(OutputExists):
        _run(delta, "apply", old, patch, "-o", out)
    assert report["result_sha256"] in _run(delta, "apply", old, patch, "-o", out, "--force")
    assert "% of" in _run(delta, "encode", old, new, "-o", patch, "--force")
    with pytest.raises(DeltaBaseMismatch) as caught:
        _run(delta, "apply", new, patch, "-o", tmp_path / "none")
    assert caught.value.exit_code == ExitCode.TRUST
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("staged", [False, True])
def test_a_publisher_may_allow_samples(tmp_path: Path, staged: bool) -> None:
    repo, keys, build = tmp_path / "repo", ("--keys", tmp_path / "keys"), tmp_path / "build"
    _run(release, "init", repo, *keys)
    build.mkdir()
    write_build(build)
    allowed = ("--release", "1", "--allow-samples", "6")
    if staged:
        _run(release, "add", build, repo, *allowed)
        _run(release, "publish", repo, *keys)
    else:
        _run(release, "publish", build, repo, *keys, *allowed)
    (manifest,) = (repo / "targets/stable/toy/1").glob("*manifest.json")
    assert read_manifest(manifest.read_bytes()).samples_per_hour == 6
    assert _json(release, "edgewright.verified/1", "verify", repo)["releases"] == {"stable/toy": ["1"]}
