"""Publishing: what lands where, what is refused, same inputs same bytes, and crashes that harm nothing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import OutputExists, PublishError, PublishTrustError
from compiler.publish.client import verify
from compiler.publish.draft import DRAFT_NAME
from compiler.publish.keys import ensure_signer
from compiler.publish.release import Signing, init, publish, refresh, set_rollout
from compiler.publish.repository import load
from runtimes.artifact.archive import unpack
from runtimes.artifact.canonical import canonical_json
from runtimes.artifact.delta import apply_delta
from runtimes.artifact.files import sha256_tree
from runtimes.artifact.index import Rollout, read_index
from runtimes.artifact.manifest import Manifest, read_manifest
from runtimes.errors import ManifestError, StorageError
from tests.compiler.publish.conftest import NOW, Build, copy, tree


def _target(repo: Path, path: str, channel: str = "stable") -> Path:
    repository = load(repo)
    return repository.target_file(repository.channel(channel).targets[path])


def _manifest(repo: Path, release: str) -> Manifest:
    return read_manifest(_target(repo, f"stable/toy/{release}/manifest.json").read_bytes())


def test_a_release_has_everything_a_device_needs(repo: Path, build: Build, signing: Signing, tmp_path: Path) -> None:
    folder = build()
    result = publish(folder, repo, signing, channel="stable", release="1.0", rollout=Rollout(percent=25))
    assert (result.sequence, result.deltas) == (1, ())
    assert {f.path.rpartition("/")[2] for f in result.files} == {
        "toy.int8.onnx",
        "toy.mlpackage.zip",
        "vectors.npz",
        "manifest.json",
        "provenance.json",
        "sbom.json",
    }
    manifest = _manifest(repo, "1.0")
    assert (manifest.release, manifest.sequence, manifest.created) == ("1.0", 1, "2030-03-17T17:46:40Z")
    package = manifest.artifact_for("iphone-15", ("coreml",))
    unpack(_target(repo, f"stable/toy/1.0/{package.path}"), tmp_path / "out", 10_000)
    assert sha256_tree(tmp_path / "out") == sha256_tree(folder / "coreml" / "toy.mlpackage")
    [entry] = read_index(_target(repo, "stable/toy/index.json").read_bytes()).releases
    assert (entry.release, entry.sequence, entry.rollout.percent) == ("1.0", 1, 25)
    assert verify(repo).releases == {"stable/toy": ("1.0",)}


def test_samples_are_allowed_by_the_signed_manifest_and_by_nothing_else(
    repo: Path, build: Build, signing: Signing
) -> None:
    publish(build(), repo, signing, channel="stable", release="1.0")
    assert b"samples_per_hour" not in _target(repo, "stable/toy/1.0/manifest.json").read_bytes()
    publish(build("more", seed=1), repo, signing, channel="stable", release="2.0", samples_per_hour=6)
    assert _manifest(repo, "2.0").samples_per_hour == 6
    assert verify(repo).releases == {"stable/toy": ("1.0", "2.0")}


def test_the_second_release_comes_with_a_delta_that_applies(
    repo: Path, build: Build, signing: Signing, tmp_path: Path
) -> None:
    publish(build("one"), repo, signing, channel="stable", release="1", delta_from=0)
    second = build("two", seed=1, noise=0.3)
    result = publish(second, repo, signing, channel="stable", release="2")
    [delta] = [d for d in result.deltas if d.full_bytes > 10_000]
    assert result.sequence == 2
    assert delta.size_bytes < 0.4 * delta.full_bytes
    base = _target(repo, "stable/toy/1/toy.int8.onnx")
    digest = apply_delta(base, _target(repo, delta.path), tmp_path / "new", max_result_bytes=delta.full_bytes)
    assert (tmp_path / "new").read_bytes() == (second / "toy.int8.onnx").read_bytes()
    custom = load(repo).channel("stable").targets[delta.path].custom["edgewright"]["delta"]
    assert custom["result_sha256"] == digest
    assert custom["base_sha256"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert custom["memory_bytes"] > 0
    verify(repo)


def test_an_unchanged_artifact_needs_no_delta_and_a_useless_one_is_dropped(
    repo: Path, build: Build, signing: Signing
) -> None:
    publish(build("one"), repo, signing, channel="stable", release="1")
    same = publish(build("two"), repo, signing, channel="stable", release="2")
    assert same.deltas == ()
    third = publish(build("three", seed=5), repo, signing, channel="stable", release="3", delta_from=2)
    assert all(d.size_bytes < d.full_bytes for d in third.deltas)


def test_channels_are_separate(repo: Path, build: Build, signing: Signing) -> None:
    publish(build("one"), repo, signing, channel="beta", release="1")
    publish(build("two", seed=1), repo, signing, channel="stable", release="1")
    publish(build("three", model="other"), repo, signing, channel="stable", release="1")
    assert verify(repo).releases == {"beta/toy": ("1",), "stable/other": ("1",), "stable/toy": ("1",)}


def test_same_inputs_and_keys_give_the_same_bytes(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(NOW))
    one, two = build("one"), build("two", seed=1, noise=0.3)
    trees = []
    for name in ("a", "b"):
        signing = Signing(tmp_path / "keys")
        init(tmp_path / name, signing)
        for release, folder in (("1", one), ("2", two)):
            publish(folder, tmp_path / name, signing, channel="stable", release=release)
        trees.append(tree(tmp_path / name))
    assert trees[0] == trees[1]
    assert any(path.endswith(".ewd") for path in trees[0])


def test_provenance_and_bill_of_materials(repo: Path, build: Build, signing: Signing) -> None:
    publish(build(), repo, signing, channel="stable", release="1")
    manifest = _manifest(repo, "1")
    documents = {
        name: json.loads(_target(repo, f"stable/toy/1/{ref.path}").read_bytes())
        for name, ref in manifest.documents.items()
    }
    statement, sbom = documents["provenance"], documents["sbom"]
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    digests = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    assert digests == {a.path: a.sha256 for a in manifest.artifacts}
    materials = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert materials == [
        {"name": "toy.onnx", "digest": {"sha256": "c" * 64}},
        {"name": "calibration", "digest": {"sha256": "d" * 64}},
        {"name": "numpy", "uri": "pkg:pypi/numpy@4.5"},
        {"name": "onnx", "uri": "pkg:pypi/onnx@1.2.3"},
    ]
    assert {c["name"] for c in sbom["components"]} == {a.path for a in manifest.artifacts}


def test_the_provenance_says_how_it_was_configured(repo: Path, build: Build, signing: Signing) -> None:
    folder = build()
    _edit(folder, lambda d: d["quality"]["provenance"].update({"configuration": {"effort": "high", "max_drop": 1.5}}))
    publish(folder, repo, signing, channel="stable", release="1")
    ref = _manifest(repo, "1").documents["provenance"]
    statement = json.loads(_target(repo, f"stable/toy/1/{ref.path}").read_bytes())
    parameters = statement["predicate"]["buildDefinition"]["externalParameters"]
    assert parameters == {"model": "toy", "release": "1", "configuration": {"effort": "high", "max_drop": 1.5}}


def test_the_documents_follow_their_schemas(repo: Path, build: Build, signing: Signing) -> None:
    """By the validators of those who define them: in-toto's own protobuf classes, CycloneDX's JSON schema (strict)."""
    statement_module = pytest.importorskip("in_toto_attestation.v1.statement")
    from cyclonedx.exception import MissingOptionalDependencyException
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2

    publish(build(), repo, signing, channel="stable", release="1")
    documents = {
        name: _target(repo, f"stable/toy/1/{ref.path}").read_text()
        for name, ref in _manifest(repo, "1").documents.items()
    }
    parsed = json_format.Parse(documents["provenance"], statement_pb2.Statement())
    statement_module.Statement.copy_from_pb(parsed).validate()
    for material in json.loads(documents["provenance"])["predicate"]["buildDefinition"]["resolvedDependencies"]:
        assert material.keys() & {"uri", "digest", "content"}, "SLSA v1: ResourceDescriptor"
    try:
        validator = JsonStrictValidator(SchemaVersion.V1_6)
        assert validator.validate_str(documents["sbom"]) is None
        assert validator.validate_str(documents["sbom"].replace('"bomFormat"', '"bomFormt"')) is not None
    except MissingOptionalDependencyException:
        pytest.skip("jsonschema is not installed (extra dev)")


def test_a_draft_without_provenance_names_the_tools_installed_here(repo: Path, build: Build, signing: Signing) -> None:
    folder = build()
    _edit(folder, lambda d: d.update({"quality": {"provenance": ["nonsense"]}}))
    publish(folder, repo, signing, channel="stable", release="1")
    ref = _manifest(repo, "1").documents["provenance"]
    statement = json.loads(_target(repo, f"stable/toy/1/{ref.path}").read_bytes())
    materials = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {m["name"] for m in materials} >= {"numpy", "onnx"}
    assert all("uri" in m for m in materials)


def test_the_bill_of_materials_is_read_by_the_cyclonedx_library(repo: Path, build: Build, signing: Signing) -> None:
    from cyclonedx.model.bom import Bom

    publish(build(), repo, signing, channel="stable", release="1")
    ref = _manifest(repo, "1").documents["sbom"]
    bom = Bom.from_json(json.loads(_target(repo, f"stable/toy/1/{ref.path}").read_bytes()))  # type: ignore[attr-defined]
    assert {component.name for component in bom.components} == {"toy.int8.onnx", "coreml/toy.mlpackage.zip"}
    assert bom.metadata.component is not None and bom.metadata.component.name == "toy"


def test_a_build_without_draft_is_refused(repo: Path, build: Build, signing: Signing) -> None:
    folder = build()
    (folder / DRAFT_NAME).unlink()
    _refused(repo, folder, signing, PublishError, "a gate said no")


def test_a_draft_with_unknown_fields_keeps_them(repo: Path, build: Build, signing: Signing) -> None:
    folder = build()
    _edit(folder, lambda d: d.update({"x_future": [1, 2.5]}))
    publish(folder, repo, signing, channel="stable", release="1")
    assert (_manifest(repo, "1").model_extra or {})["x_future"] == [1, 2.5]


def _edit(folder: Path, change: Any) -> None:
    draft = json.loads((folder / DRAFT_NAME).read_bytes())
    change(draft)
    (folder / DRAFT_NAME).write_bytes(canonical_json(draft))


def _refused(repo: Path, folder: Path, signing: Signing, kind: type[Exception], text: str, **options: Any) -> None:
    before = tree(repo)
    with pytest.raises(kind, match=text):
        publish(folder, repo, signing, **({"channel": "stable", "release": "1"} | options))
    after = tree(repo)
    after.pop(".lock", None)
    before.pop(".lock", None)
    assert after == before


def test_bad_drafts_are_refused_and_nothing_is_written(repo: Path, build: Build, signing: Signing) -> None:
    changed = build("changed")
    (changed / "toy.int8.onnx").write_bytes(b"other")
    _refused(repo, changed, signing, PublishTrustError, "the build measured")
    missing = build("missing")
    (missing / "vectors.npz").unlink()
    _refused(repo, missing, signing, PublishError, "missing")
    link = build("link")
    (link / "vectors.npz").unlink()
    (link / "vectors.npz").symlink_to("/etc/hostname")
    _refused(repo, link, signing, PublishError, "leaves")
    invalid = build("invalid")
    (invalid / DRAFT_NAME).write_bytes(b"{}")
    _refused(repo, invalid, signing, ManifestError, "schema")
    deep = build("deep")
    _edit(deep, lambda d: d["self_test"]["vectors"].update({"path": "a/b/c/d/vectors.npz"}))
    (deep / "a/b/c/d").mkdir(parents=True)
    shutil.copy(deep / "vectors.npz", deep / "a/b/c/d/vectors.npz")
    _refused(repo, deep, signing, PublishError, "cannot be published")


def test_one_file_may_serve_two_artifacts_but_two_files_may_not_meet(
    repo: Path, build: Build, signing: Signing
) -> None:
    shared = build("shared")
    _edit(shared, lambda d: d["artifacts"].append(d["artifacts"][1] | {"profiles": ["another"]}))
    publish(shared, repo, signing, channel="beta", release="1")
    verify(repo)
    clash = build("clash")
    shutil.copy(clash / "vectors.npz", clash / "coreml" / "toy.mlpackage.zip")
    _edit(clash, lambda d: d["self_test"]["vectors"].update({"path": "coreml/toy.mlpackage.zip"}))
    _refused(repo, clash, signing, PublishError, "cannot be published")


def test_bad_requests_are_refused(repo: Path, build: Build, signing: Signing) -> None:
    folder = build()
    _refused(repo, folder, signing, PublishError, "beta, stable", channel="nightly")
    _refused(repo, folder, signing, PublishError, "deltas", release="deltas")
    publish(folder, repo, signing, channel="stable", release="1")
    _refused(repo, folder, signing, PublishError, "has a release '1' already")
    with pytest.raises(PublishError, match="no repository"):
        publish(folder, folder, signing, channel="stable", release="2")
    with pytest.raises(OutputExists):
        init(repo, signing)


@pytest.mark.parametrize("release", ["../up", "a/b", "", "-x", "a b"])
def test_a_release_name_that_is_no_name_is_refused(release: str, repo: Path, build: Build, signing: Signing) -> None:
    _refused(repo, build(), signing, PublishError, "cannot be called", release=release)


def test_a_second_publisher_is_refused(repo: Path, build: Build, signing: Signing) -> None:
    with (repo / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _refused(repo, build(), signing, PublishError, "Another process")


def test_missing_and_foreign_keys_are_refused_before_the_metadata_changes(
    repo: Path, build: Build, signing: Signing, tmp_path: Path
) -> None:
    folder = build()
    metadata = tree(repo / "metadata")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PublishError, match="no key for the role"):
        publish(folder, repo, replace(signing, keys=tmp_path / "empty"), channel="stable", release="1")
    init(tmp_path / "other", replace(signing, keys=tmp_path / "other-keys"))
    with pytest.raises(PublishTrustError, match="does not trust"):
        publish(folder, repo, replace(signing, keys=tmp_path / "other-keys"), channel="stable", release="1")
    assert tree(repo / "metadata") == metadata


def test_root_keys_are_not_needed_to_publish(repo: Path, build: Build, signing: Signing) -> None:
    (signing.keys / "root-1.pem").unlink()
    publish(build(), repo, signing, channel="stable", release="1")
    verify(repo)


def test_keys_are_encrypted_private_and_need_their_password(tmp_path: Path, build: Build) -> None:
    signing = Signing(tmp_path / "keys", password="correct horse", now=NOW)
    init(tmp_path / "repo", signing, root_keys=3, root_threshold=2)
    keys = sorted(p.name for p in signing.keys.iterdir())
    assert keys == [
        "root-1.pem",
        "root-2.pem",
        "root-3.pem",
        "snapshot.pem",
        "stable.pem",
        "targets.pem",
        "timestamp.pem",
    ]
    for path in signing.keys.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
    assert len(load(tmp_path / "repo").root.signatures) == 3
    folder = build()
    for wrong in (None, "wrong"):
        with pytest.raises(PublishError, match="does not open"):
            publish(folder, tmp_path / "repo", replace(signing, password=wrong), channel="stable", release="1")
    publish(folder, tmp_path / "repo", signing, channel="stable", release="1")


def test_a_signer_by_uri(repo: Path, build: Build, signing: Signing, tmp_path: Path) -> None:
    (signing.keys / "timestamp.pem").rename(tmp_path / "elsewhere.pem")
    (signing.keys / "timestamp.uri").write_text(f"file2:{tmp_path / 'elsewhere.pem'}\n")
    publish(build(), repo, signing, channel="stable", release="1")
    verify(repo)
    (signing.keys / "timestamp.uri").write_text("nonsense:x\n")
    with pytest.raises(PublishError, match="nonsense"):
        refresh(repo, signing)


def test_a_root_threshold_above_the_keys_and_bad_channels_are_refused(tmp_path: Path, signing: Signing) -> None:
    for options in (
        {"root_threshold": 2},
        {"channels": ("root",)},
        {"channels": ("a/b",)},
        {"channels": ("a*",)},
        {"channels": ("-a",)},
        {"channels": ("a.root",)},
        {"channels": ("root-1",)},
        {"channels": ()},
        {"channels": ("a", "a")},
    ):
        with pytest.raises(PublishError):
            init(tmp_path / "repo", signing, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "repo").exists()


def test_rollout_changes_who_gets_a_release(repo: Path, build: Build, signing: Signing) -> None:
    publish(build(), repo, signing, channel="stable", release="1", rollout=Rollout(percent=1))
    where = {"channel": "stable", "model": "toy", "release": "1"}
    assert set_rollout(repo, signing, **where, percent=50).percent == 50
    halted = set_rollout(repo, signing, **where, halted=True)
    assert (halted.percent, halted.halted) == (50, True)
    [entry] = read_index(_target(repo, "stable/toy/index.json").read_bytes()).releases
    assert entry.rollout.halted
    verify(repo)
    with pytest.raises(PublishError, match="no release '9'"):
        set_rollout(repo, signing, **(where | {"release": "9"}), percent=5)
    with pytest.raises(PublishError, match="percentage"):
        set_rollout(repo, signing, **where, percent=101)


def test_refresh_moves_the_expiry(repo: Path, signing: Signing) -> None:
    before = load(repo).timestamp.signed.expires
    refresh(repo, replace(signing, now=NOW + 86_400))
    assert (load(repo).timestamp.signed.expires - before).days == 1
    refresh(repo, replace(signing, now=NOW + 2 * 86_400), everything=True)
    assert load(repo).targets.signed.version == 2
    verify(repo)


class _PowerCut(BaseException):
    """Not an Exception: nothing may handle it."""


def _cut_power(monkeypatch: pytest.MonkeyPatch, when: str, number: int) -> None:
    """Fail before or after the ``number``th rename, which is how every file of the repository comes to be."""
    calls = iter(range(1, 10_000))
    rename = os.replace

    def cut(source: Any, destination: Any, **options: Any) -> None:
        call = next(calls)
        if call == number and when == "before":
            raise _PowerCut
        rename(source, destination, **options)
        if call == number:
            raise _PowerCut

    monkeypatch.setattr(os, "replace", cut)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_power_cut_at_every_write_leaves_a_valid_repository(
    when: str, repo: Path, build: Build, signing: Signing, tmp_path: Path
) -> None:
    publish(build("one"), repo, signing, channel="stable", release="1")
    folder = build("two", seed=1, noise=0.3)
    for number in range(1, 100):
        victim = copy(repo, tmp_path / f"{when}-{number}")
        with pytest.MonkeyPatch.context() as patch:
            _cut_power(patch, when, number)
            try:
                publish(folder, victim, signing, channel="stable", release="2")
                break
            except _PowerCut:
                pass
        known = verify(victim).releases["stable/toy"]
        assert known in (("1",), ("1", "2"))
        if known == ("1",):
            publish(folder, victim, signing, channel="stable", release="2")
            assert verify(victim).releases["stable/toy"] == ("1", "2")
        shutil.rmtree(victim)
    assert 8 <= number < 40, "the publication has as many writes as files"


def test_a_full_disk_at_every_write_is_a_storage_error(
    repo: Path, build: Build, signing: Signing, tmp_path: Path
) -> None:
    publish(build("one"), repo, signing, channel="stable", release="1")
    folder = build("two", seed=1, noise=0.3)
    synced = os.fsync
    for number in range(1, 200, 3):
        calls = iter(range(1, 10_000))

        def full(descriptor: int, number: int = number, calls: Iterator[int] = calls) -> None:
            if next(calls) == number:
                raise OSError(28, "No space left on device")
            synced(descriptor)

        victim = copy(repo, tmp_path / f"full-{number}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                publish(folder, victim, signing, channel="stable", release="2")
                break
            except StorageError as error:
                assert "Free space" in error.remedy
        assert verify(victim).releases["stable/toy"] in (("1",), ("1", "2"))
        assert not list(victim.rglob("*.tmp"))
        shutil.rmtree(victim)
    assert number > 10


def test_a_failed_init_leaves_nothing(tmp_path: Path, signing: Signing) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _cut_power(patch, "before", 3)
        with pytest.raises(_PowerCut):
            init(tmp_path / "repo", signing)
    assert not (tmp_path / "repo").exists()
    assert not list(tmp_path.glob(".repo*"))
    init(tmp_path / "repo", signing)


def test_a_key_file_is_never_replaced(tmp_path: Path) -> None:
    first = ensure_signer(tmp_path / "k.pem", None).public_key
    assert ensure_signer(tmp_path / "k.pem", None).public_key == first
