"""Releases that were added and not signed: nobody sees them; signed together; never lost, never half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from compiler.cli.release import release
from compiler.errors import PublishError, PublishTrustError
from compiler.publish.client import verify
from compiler.publish.manage import prune
from compiler.publish.release import Signing, publish
from compiler.publish.repository import load
from compiler.publish.staged import add, publish_staged, staged
from tests.compiler.publish.conftest import NOW, Build, copy, tree
from tests.compiler.publish.test_release import _cut_power, _PowerCut


@pytest.fixture
def one(repo: Path, build: Build, signing: Signing) -> Path:
    publish(build("b1"), repo, signing, channel="stable", release="1")
    return repo


def test_what_was_added_is_seen_by_nobody_and_signed_in_one_step(one: Path, build: Build, signing: Signing) -> None:
    before = tree(one / "metadata")
    second = add(build("b2", seed=1, noise=0.3), one, channel="stable", release="2", now=NOW)
    add(build("b3", seed=2, noise=0.3), one, channel="stable", release="3", now=NOW)
    add(build("other", model="other"), one, channel="beta", release="1", now=NOW)
    assert (second.sequence, len(second.deltas) > 0) == (2, True)
    assert tree(one / "metadata") == before and verify(one).releases == {"stable/toy": ("1",)}
    done = publish_staged(one, signing)
    assert [(r.channel, r.model, r.release, r.sequence) for r in done] == [
        ("beta", "other", "1", 1),
        ("stable", "toy", "2", 2),
        ("stable", "toy", "3", 3),
    ]
    assert verify(one).releases == {"beta/other": ("1",), "stable/toy": ("1", "2", "3")}
    assert load(one).timestamp.signed.version == 3  # 1 at init, 2 with release 1
    with pytest.raises(PublishError, match="Nothing was added"):
        publish_staged(one, signing)


def test_added_and_signed_or_published_is_the_same(one: Path, build: Build, signing: Signing, tmp_path: Path) -> None:
    twin, folder = copy(one, tmp_path / "twin"), build("b2", seed=1, noise=0.3)
    add(folder, one, channel="stable", release="2", now=NOW)
    publish_staged(one, signing)
    publish(folder, twin, signing, channel="stable", release="2")
    assert tree(one / "metadata") == tree(twin / "metadata") and tree(one / "targets") == tree(twin / "targets")


def test_prune_leaves_what_waits(one: Path, build: Build, signing: Signing) -> None:
    add(build("b2", seed=1, noise=0.3), one, channel="stable", release="2", now=NOW)
    prune(one, signing, keep=1, grace_hours=0)
    publish_staged(one, signing)
    assert verify(one).releases == {"stable/toy": ("1", "2")}


def test_what_changed_since_is_not_signed(one: Path, build: Build, signing: Signing) -> None:
    add(build("b2", seed=1, noise=0.3), one, channel="stable", release="2", now=NOW)
    with pytest.raises(PublishError, match="has a release '2' already"):
        add(build("again"), one, channel="stable", release="2", now=NOW)
    [record] = staged(one)
    victim = load(one).target_file(next(t for n, t in record.targets.items() if n.endswith(".onnx")))
    good = victim.read_bytes()
    victim.write_bytes(b"swapped before the signer came")
    before = tree(one / "metadata")
    with pytest.raises(PublishTrustError):
        publish_staged(one, signing)
    assert tree(one / "metadata") == before
    victim.write_bytes(good)
    publish(build("b3", seed=3, noise=0.3), one, signing, channel="stable", release="2b")
    with pytest.raises(PublishError, match="was published since"):
        publish_staged(one, signing)
    record.path.write_text("{}")
    with pytest.raises(PublishTrustError, match="damaged"):
        publish_staged(one, signing)
    verify(one)


def test_a_power_cut_while_signing_leaves_the_old_or_the_new(
    one: Path, build: Build, signing: Signing, tmp_path: Path
) -> None:
    add(build("b2", seed=1, noise=0.3), one, channel="stable", release="2", now=NOW)
    for number in range(1, 20):
        victim = copy(one, tmp_path / f"cut-{number}")
        with pytest.MonkeyPatch.context() as patch:
            _cut_power(patch, "after", number)
            try:
                publish_staged(victim, signing)
                break
            except _PowerCut:
                pass
        assert verify(victim).releases["stable/toy"] in (("1",), ("1", "2"))
        publish_staged(victim, signing)
        assert verify(victim).releases["stable/toy"] == ("1", "2") and not staged(victim)
    assert number > 3


def test_the_commands(one: Path, build: Build, signing: Signing) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(release, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    folder, keys = str(build("b2", seed=1)), ("--keys", str(signing.keys), "--no-password")
    assert "Not signed yet" in run("add", folder, str(one), "--release", "2", "--window", "02:00-05:00")
    done = json.loads(run("publish", str(one), *keys, "--json"))
    assert [r["release"] for r in done["releases"]] == ["2"]
    for wrong in (["publish", folder, str(one), *keys], ["publish", str(one), *keys, "--release", "3"]):
        assert CliRunner().invoke(release, wrong).exit_code == 2
