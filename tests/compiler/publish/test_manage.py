"""After publication: revoked, pruned, compared; and keys that change, at every moment with a repository that devices accept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from compiler.cli.release import release
from compiler.errors import PublishError, PublishTrustError
from compiler.publish.client import verify
from compiler.publish.manage import diff, prune, revoke, told
from compiler.publish.release import Signing, init, publish, refresh
from compiler.publish.repository import load
from compiler.publish.rotate import rotate
from compiler.publish.show import show
from tests.compiler.publish.conftest import Build, copy, tree
from tests.compiler.publish.test_release import _cut_power, _PowerCut


@pytest.fixture
def three(repo: Path, build: Build, signing: Signing) -> Path:
    for number in range(1, 4):
        folder = build(f"b{number}", seed=number, noise=0.3)
        publish(folder, repo, signing, channel="stable", release=f"{number}")
    return repo


def test_a_revoked_release_is_for_nobody(three: Path, signing: Signing) -> None:
    entry = revoke(three, signing, channel="stable", model="toy", release="3", reason="wrong labels")
    assert (entry.rollout.halted, entry.rollout.revoked) == (True, "wrong labels")
    assert not entry.rollout.includes("any", "toy", "3")
    verify(three)
    with pytest.raises(PublishError, match="revoked already: wrong labels"):
        revoke(three, signing, channel="stable", model="toy", release="3", reason="again")
    with pytest.raises(PublishError, match="no release '9'"):
        revoke(three, signing, channel="stable", model="toy", release="9", reason="x")


def test_prune_keeps_the_newest_and_what_they_need(three: Path, signing: Signing) -> None:
    before = sum(p.stat().st_size for p in three.rglob("*") if p.is_file())
    plan = prune(three, signing, keep=2, grace_hours=0, dry_run=True)
    assert plan.releases == ("stable/toy/1",)
    assert verify(three).releases == {"stable/toy": ("1", "2", "3")}
    done = prune(three, signing, keep=2, grace_hours=0)
    assert done.releases == plan.releases and done.files > 3
    assert verify(three).releases == {"stable/toy": ("2", "3")}
    assert sum(p.stat().st_size for p in three.rglob("*") if p.is_file()) < before
    # Devices that still run release 1 get to 3 by a delta.
    assert len(next(r for r in show(three).releases if r.release == "3").deltas) >= 2
    assert (three / "metadata" / "1.root.json").exists()
    again = prune(three, signing, keep=2, grace_hours=0)
    assert again.releases == () and again.files <= 3
    assert publish_next(three, signing) == 4


def publish_next(repo: Path, signing: Signing) -> int:
    from tests.compiler.publish.conftest import write_build

    folder = repo.parent / "next"
    write_build(folder, seed=9, noise=0.3)
    return publish(folder, repo, signing, channel="stable", release="4").sequence


def test_young_files_outlive_their_release(three: Path, signing: Signing) -> None:
    done = prune(three, signing, keep=1)
    assert done.releases == ("stable/toy/1", "stable/toy/2") and done.files == 0
    verify(three)
    with pytest.raises(PublishError, match="must stay"):
        prune(three, signing, keep=0)


def test_an_interrupted_prune_leaves_a_valid_repository(three: Path, signing: Signing, tmp_path: Path) -> None:
    for number in range(1, 30):
        victim = copy(three, tmp_path / f"cut-{number}")
        with pytest.MonkeyPatch.context() as patch:
            _cut_power(patch, "after", number)
            try:
                prune(victim, signing, keep=1, grace_hours=0)
                return
            except _PowerCut:
                pass
        verify(victim)
        prune(victim, signing, keep=1, grace_hours=0)
        assert verify(victim).releases == {"stable/toy": ("3",)}
        shutil.rmtree(victim)


def test_diff_tells_what_changed(three: Path) -> None:
    found = diff(three, channel="stable", model="toy", old="1", new="3")
    lines = [told(change) for change in found.changes]
    assert any("sha256" in line for line in lines)
    assert found.delta_bytes
    assert diff(three, channel="stable", model="toy", old="3", new="3").changes == ()
    with pytest.raises(PublishError, match="no release"):
        diff(three, channel="stable", model="toy", old="1", new="7")


@pytest.mark.parametrize("role", ("targets", "snapshot", "timestamp", "stable", "root"))
def test_rotation_replaces_the_key_and_devices_follow(three: Path, signing: Signing, role: str, tmp_path: Path) -> None:
    first_root = three / "metadata" / "1.root.json"
    result = rotate(three, signing, role)
    assert len(result.retired) == 1 and not set(result.retired) & set(result.trusted)
    assert verify(three, root=first_root).releases == {"stable/toy": ("1", "2", "3")}
    for path in signing.keys.glob(f"{role}*.pem"):
        if path not in result.new_files:
            path.unlink()
    refresh(three, signing, everything=True)
    verify(three, root=first_root)
    assert rotate(three, signing, role).retired == result.trusted


@pytest.mark.parametrize("role", ("timestamp", "targets", "stable", "root"))
@pytest.mark.parametrize("when", ("before", "after"))
def test_a_power_cut_during_rotation_leaves_a_repository_that_devices_accept(
    three: Path, signing: Signing, role: str, when: str, tmp_path: Path
) -> None:
    for number in range(1, 20):
        victim, keys = copy(three, tmp_path / f"v{number}"), copy(signing.keys, tmp_path / f"k{number}")
        mine = replace(signing, keys=keys)
        with pytest.MonkeyPatch.context() as patch:
            _cut_power(patch, when, number)
            try:
                rotate(victim, mine, role)
                break
            except _PowerCut:
                pass
        verify(victim, root=victim / "metadata" / "1.root.json")
        rotate(victim, mine, role)
        verify(victim, root=victim / "metadata" / "1.root.json")
    else:
        raise AssertionError("the rotation never ends")
    assert number > 1


def test_a_lost_root_key_is_replaced_by_the_others(tmp_path: Path, build: Build, signing: Signing) -> None:
    repo = tmp_path / "threshold"
    init(repo, signing, root_keys=3, root_threshold=2)
    publish(build(), repo, signing, channel="stable", release="1")
    trusted = shutil.copy(repo / "metadata" / "1.root.json", tmp_path / "root.json")
    with pytest.raises(PublishError, match="none is lost"):
        rotate(repo, signing, "root", lost=True)
    (signing.keys / "root-2.pem").unlink()
    result = rotate(repo, signing, "root", lost=True)
    assert len(result.retired) == 1 and len(result.trusted) == 3
    verify(repo, root=Path(trusted))
    root = load(repo).root
    assert root.signed.roles["root"].threshold == 2
    assert len(root.signatures) == 3  # two of the old keys, and the new one


def test_with_fewer_root_keys_than_the_threshold_nothing_changes(
    tmp_path: Path, build: Build, signing: Signing
) -> None:
    repo = tmp_path / "threshold"
    init(repo, signing, root_keys=3, root_threshold=2)
    for number in (1, 2):
        (signing.keys / f"root-{number}.pem").unlink()
    (repo / ".lock").touch()
    before = tree(repo)
    with pytest.raises((PublishError, PublishTrustError)):
        rotate(repo, signing, "timestamp")
    assert tree(repo) == before


def test_the_commands(three: Path, signing: Signing) -> None:
    def run(*arguments: str) -> str:
        keys = () if arguments[0] == "diff" else ("--keys", str(signing.keys), "--no-password")
        result = CliRunner().invoke(release, [*arguments, *keys], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert signing.password is None
    repo = str(three)
    common = ("--channel", "stable", "--model", "toy")
    assert "toy.int8.onnx" in run("diff", repo, "1", "3", *common)
    document = json.loads(run("diff", repo, "1", "3", *common, "--json"))
    assert document["schema"] == "edgewright.release-diff/1" and document["delta_bytes"]
    assert "withdrawn" in run("revoke", repo, *common, "--release", "2", "--reason", "bad data")
    assert json.loads(run("rotate", repo, "--role", "timestamp", "--json"))["root_version"] == 2
    assert "stable/toy/1" in run("prune", repo, "--keep", "2", "--dry-run")
    assert json.loads(run("prune", repo, "--keep", "2", "--json"))["releases"] == ["stable/toy/1"]


def test_a_retired_key_never_comes_back(three: Path, signing: Signing) -> None:
    """Its files may still lie in the folder."""
    retired: set[str] = set()
    for _ in range(4):
        result = rotate(three, signing, "timestamp")
        assert not set(result.trusted) & retired
        retired |= set(result.retired)
    assert len(retired) == 4
