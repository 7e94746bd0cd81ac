"""Attacks on a repository, judged by python-tuf's own client and by ``verify``."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.ngclient import Updater

from compiler.errors import PublishTrustError
from compiler.publish.client import FileFetcher, verify
from compiler.publish.release import Signing, init, publish, refresh
from tests.compiler.publish.conftest import Build, tree

PATH = "stable/toy/1/toy.int8.onnx"


@pytest.fixture
def published(repo: Path, build: Build, signing: Signing) -> Path:
    publish(build(), repo, signing, channel="stable", release="1")
    return repo


@pytest.fixture
def cache(published: Path, tmp_path: Path) -> Path:
    """A device's trusted metadata after one good visit."""
    folder = tmp_path / "device"
    folder.mkdir()
    _visit(published, folder, (published / "metadata" / "1.root.json").read_bytes())
    return folder


def _visit(repo: Path, cache: Path, bootstrap: bytes | None = None) -> bytes:
    metadata, targets = (repo / "metadata").as_uri(), (repo / "targets").as_uri()
    updater = Updater(str(cache), metadata, str(cache), targets, FileFetcher(), bootstrap=bootstrap)
    updater.refresh()
    info = updater.get_targetinfo(PATH)
    assert info is not None
    return Path(updater.download_target(info, str(cache / "download"))).read_bytes()


def _refused_by_verify(repo: Path) -> None:
    with pytest.raises(PublishTrustError) as caught:
        verify(repo)
    assert caught.value.exit_code == 5
    assert caught.value.remedy


def test_a_good_repository_is_accepted(published: Path, cache: Path, tmp_path: Path) -> None:
    assert _visit(published, cache) == (tmp_path / "build" / "toy.int8.onnx").read_bytes()


def test_a_tampered_target_is_refused(published: Path, cache: Path) -> None:
    [path] = (published / "targets" / "stable" / "toy" / "1").glob("*.toy.int8.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(LengthOrHashMismatchError):
        _visit(published, cache)
    _refused_by_verify(published)


def test_every_tampered_target_file_is_found_by_verify(published: Path) -> None:
    for path in [p for p in (published / "targets").rglob("*") if p.is_file()]:
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        _refused_by_verify(published)
        path.unlink()
        _refused_by_verify(published)
        path.write_bytes(good)
    verify(published)


@pytest.mark.parametrize("role", ["timestamp", "2.snapshot", "2.stable"])
def test_tampered_metadata_is_refused(role: str, published: Path, cache: Path, tmp_path: Path) -> None:
    path = published / "metadata" / f"{role}.json"
    document = json.loads(path.read_bytes())
    document["signed"]["expires"] = "2099-01-01T00:00:00Z"
    path.write_text(json.dumps(document))
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    with pytest.raises((RepositoryError, DownloadError)):  # wrong signature or digest; or longer than the signed length
        _visit(published, fresh, (published / "metadata" / "1.root.json").read_bytes())
    _refused_by_verify(published)


def test_a_rolled_back_timestamp_is_refused(published: Path, cache: Path, signing: Signing) -> None:
    old = (published / "metadata" / "timestamp.json").read_bytes()
    refresh(published, signing)
    _visit(published, cache)
    (published / "metadata" / "timestamp.json").write_bytes(old)
    before = (cache / "timestamp.json").read_bytes()
    with pytest.raises(BadVersionNumberError):
        _visit_strictly(published, cache)
    assert (cache / "timestamp.json").read_bytes() == before


def _visit_strictly(repo: Path, cache: Path) -> None:
    _visit(repo, cache)


def test_expired_metadata_is_refused(published: Path, cache: Path, signing: Signing) -> None:
    refresh(published, replace(signing, now=1_500_000_000))
    with pytest.raises(ExpiredMetadataError):
        _visit(published, cache)
    _refused_by_verify(published)
    refresh(published, signing)
    verify(published)


def test_a_wrong_key_is_refused(published: Path, cache: Path, signing: Signing, tmp_path: Path) -> None:
    """The attacker has own keys and a repository that looks alike, with a higher version."""
    evil = replace(signing, keys=tmp_path / "evil-keys")
    init(tmp_path / "evil", evil, channels=("stable", "beta"))
    for _ in range(5):
        refresh(tmp_path / "evil", evil)
    shutil.copy(tmp_path / "evil" / "metadata" / "timestamp.json", published / "metadata" / "timestamp.json")
    with pytest.raises(UnsignedMetadataError):
        _visit(published, cache)
    _refused_by_verify(published)


def test_another_root_is_not_trusted(published: Path, signing: Signing, tmp_path: Path) -> None:
    other = replace(signing, keys=tmp_path / "other-keys")
    init(tmp_path / "other", other)
    with pytest.raises(PublishTrustError):
        verify(published, root=tmp_path / "other" / "metadata" / "1.root.json")
    verify(published, root=published / "metadata" / "1.root.json")


def test_a_channel_key_cannot_sign_for_another_channel(
    published: Path, cache: Path, signing: Signing, build: Build, tmp_path: Path
) -> None:
    """The key of beta signs targets below stable/: the delegation's paths do not allow it, the client looks past them."""
    from compiler.publish.repository import commit, load

    repository = load(published)
    stolen = repository.channel("stable").targets.pop(PATH)
    repository.channel("beta").targets[PATH] = stolen
    commit(
        repository,
        ["stable", "beta"],
        signing.keys,
        password=None,
        now=signing.seconds,
        lifetimes=signing.lifetimes,
    )
    with pytest.raises(AssertionError):
        _visit(published, cache)
    _refused_by_verify(published)


def test_a_publisher_does_not_build_on_tampered_metadata(published: Path, build: Build, signing: Signing) -> None:
    path = published / "metadata" / "2.snapshot.json"
    path.write_bytes(path.read_bytes().replace(b'"version":2', b'"version":3'))
    before = tree(published / "metadata")
    with pytest.raises(PublishTrustError):
        publish(build("again"), published, signing, channel="stable", release="2")
    assert tree(published / "metadata") == before


def test_a_missing_file_is_a_download_error(published: Path, cache: Path) -> None:
    (published / "metadata" / "timestamp.json").unlink()
    with pytest.raises((DownloadError, RepositoryError)):
        _visit(published, cache)
    _refused_by_verify(published)
