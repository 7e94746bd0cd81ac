"""Repositories on their way: whole at every moment, by copy and by rsync."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compiler.cli.release import release
from compiler.errors import ExtraMissing, PublishError, PublishTrustError
from compiler.publish.bucket import BucketDestination
from compiler.publish.client import verify
from compiler.publish.destinations import FolderDestination, RsyncDestination
from compiler.publish.manage import prune
from compiler.publish.push import destination_of, push
from compiler.publish.release import Signing, publish, refresh
from compiler.publish.rotate import rotate
from tests.compiler.publish.conftest import Build, copy, tree
from tests.simulators.s3 import aws_server, needs_moto

needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed (Debian package rsync)")


@pytest.fixture
def published(repo: Path, build: Build, signing: Signing) -> Path:
    publish(build("one"), repo, signing, channel="stable", release="1")
    return repo


def devices_see(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if name != ".lock"}


def test_a_folder_gets_what_it_lacks_and_loses_what_was_pruned(
    published: Path, build: Build, signing: Signing, tmp_path: Path
) -> None:
    web = tmp_path / "web"
    first = push(published, str(web))
    assert first.files == first.offered and devices_see(web) == devices_see(published)
    assert push(published, str(web)).files == 0
    publish(build("two", seed=1, noise=0.3), published, signing, channel="stable", release="2")
    second = push(published, str(web))
    assert second.files is not None and 0 < second.files < second.offered
    prune(published, signing, keep=1, grace_hours=0)
    assert (push(published, str(web), delete=True).removed or 0) > 2
    assert devices_see(web) == devices_see(published)
    assert verify(web).releases == {"stable/toy": ("2",)}


@pytest.mark.parametrize("rotated", (None, "timestamp", "targets", "root"))
def test_interrupted_at_every_file_devices_see_the_old_or_the_new(
    published: Path, build: Build, signing: Signing, tmp_path: Path, rotated: str | None
) -> None:
    web = tmp_path / "web"
    push(published, str(web))
    root = shutil.copy(published / "metadata" / "1.root.json", tmp_path / "root.json")
    publish(build("two", seed=1, noise=0.3), published, signing, channel="stable", release="2")
    if rotated is not None:
        rotate(published, signing, rotated)
    real = FolderDestination.send
    for number in range(1, 100):
        victim = copy(web, tmp_path / f"web{number}")
        left = [number]

        def cut(
            self: FolderDestination, source: Path, files: list[str], *, replace: bool, left: list[int] = left
        ) -> int:
            for name in files:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= real(self, source, [name], replace=replace)
            return 0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FolderDestination, "send", cut)
            try:
                push(published, str(victim))
                finished = True
            except KeyboardInterrupt:
                finished = False
        assert verify(victim, root=Path(root)).releases["stable/toy"] in (("1",), ("1", "2"))
        push(published, str(victim))
        assert verify(victim, root=Path(root)).releases["stable/toy"] == ("1", "2")
        if finished:
            return
    raise AssertionError("it never ends")


def test_a_damaged_repository_is_not_spread(published: Path, tmp_path: Path) -> None:
    victim = next(p for p in (published / "targets").rglob("*.onnx"))
    victim.write_bytes(b"rotten")
    with pytest.raises(PublishTrustError):
        push(published, str(tmp_path / "web"))
    assert not (tmp_path / "web").exists()


def test_addresses(tmp_path: Path) -> None:
    assert isinstance(destination_of(str(tmp_path)), FolderDestination)
    assert isinstance(destination_of("web/updates"), FolderDestination)
    if shutil.which("rsync"):
        for address in ("me@host:/srv/updates", "host::updates", "rsync://host/updates"):
            assert isinstance(destination_of(address), RsyncDestination)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """rsync's own daemon over a folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "rsyncd.conf"
    config.write_text(f"use chroot = no\n[updates]\npath = {folder}\nread only = no\nuid = 0\ngid = 0\n")
    command = ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}", f"--config={config}"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"rsync://127.0.0.1:{port}/updates", folder
    process.terminate()
    process.wait(10)


@needs_rsync
def test_rsync_to_a_real_daemon(published: Path, build: Build, signing: Signing, daemon: tuple[str, Path]) -> None:
    address, served = daemon
    push(published, address)
    assert devices_see(served) == devices_see(published)
    publish(build("two", seed=1, noise=0.3), published, signing, channel="stable", release="2")
    prune(published, signing, keep=1, grace_hours=0)
    push(published, address, delete=True)
    assert devices_see(served) == devices_see(published)
    assert verify(served).releases == {"stable/toy": ("2",)}


@needs_rsync
def test_an_address_that_does_not_answer(published: Path) -> None:
    with pytest.raises(PublishError, match=r"rsync to rsync://127\.0\.0\.1:9/none failed"):
        push(published, "rsync://127.0.0.1:9/none")


# --- two publishers ----------------------------------------------------------------------------------------------------


def diverge(published: Path, build: Build, signing: Signing, tmp_path: Path, where: str) -> tuple[Path, Path]:
    """``published`` was pushed to ``where`` and then copied; both copies go their own way. The first pushes."""
    push(published, where)
    one, two = published, copy(published, tmp_path / "another")
    publish(build("mine", seed=1, noise=0.3), one, signing, channel="stable", release="2")
    publish(build("yours", seed=2, noise=0.3), two, signing, channel="stable", release="2b")
    push(one, where)
    return one, two


def test_of_two_publishers_to_a_folder_the_second_is_refused(
    published: Path, build: Build, signing: Signing, tmp_path: Path
) -> None:
    web = tmp_path / "web"
    _, two = diverge(published, build, signing, tmp_path, str(web))
    before = tree(web)
    with pytest.raises(PublishTrustError, match="somebody else publishes there"):
        push(two, str(web))
    refresh(two, signing)  # now it has the higher version, and still another history
    with pytest.raises(PublishTrustError, match="somebody else publishes there"):
        push(two, str(web))
    refresh(two, signing)
    assert {n: d for n, d in tree(web).items() if n in before} == before
    assert verify(web).releases == {"stable/toy": ("1", "2")}


def test_a_repository_restored_from_an_old_copy_is_refused(
    published: Path, build: Build, signing: Signing, tmp_path: Path
) -> None:
    web, old = tmp_path / "web", copy(published, tmp_path / "old")
    publish(build("two", seed=1, noise=0.3), published, signing, channel="stable", release="2")
    push(published, str(web))
    with pytest.raises(PublishTrustError, match="is newer"):
        push(old, str(web))
    assert verify(web).releases == {"stable/toy": ("1", "2")}
    (web / "metadata" / "timestamp.json").write_text("{}")
    with pytest.raises(PublishTrustError, match="that is none"):
        push(published, str(web))


def test_a_folder_that_is_being_pushed_to_is_refused(published: Path, tmp_path: Path) -> None:
    web = tmp_path / "web"
    with FolderDestination(web).session(), pytest.raises(PublishError, match="is pushing"):
        push(published, str(web))


@needs_rsync
def test_of_two_publishers_by_rsync_the_second_is_refused(
    published: Path, build: Build, signing: Signing, tmp_path: Path, daemon: tuple[str, Path]
) -> None:
    address, served = daemon
    _, two = diverge(published, build, signing, tmp_path, address)
    for _ in range(2):
        with pytest.raises(PublishTrustError, match="somebody else publishes there"):
            push(two, address)
        refresh(two, signing)
    assert verify(served).releases == {"stable/toy": ("1", "2")}
    # The same moment, before the timestamp there has changed.
    with pytest.raises(PublishTrustError, match="somebody else publishes there"):
        RsyncDestination(address).send(two, ["metadata/3.snapshot.json"], replace=False)


# --- buckets -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aws() -> Iterator[Callable[[str], Any]]:
    with aws_server() as client:
        yield client


class Bucket:
    """A new bucket, as its reader and its owner see it."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        client.create_bucket(Bucket=name)
        self.address = f"s3://{name}/fleet"

    def mirror(self, folder: Path) -> Path:
        """What a reader sees now, as a folder."""
        for item in self.client.list_objects_v2(Bucket=self.name).get("Contents", ()):
            path = folder / item["Key"].removeprefix("fleet/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.client.get_object(Bucket=self.name, Key=item["Key"])["Body"].read())
        return folder


@pytest.fixture
def bucket(aws: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Bucket:
    client = aws("s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", client.meta.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return Bucket(client, f"b-{abs(hash(request.node.name))}")


@needs_moto
def test_a_bucket_gets_what_it_lacks_and_loses_what_was_pruned(
    published: Path, build: Build, signing: Signing, tmp_path: Path, bucket: Bucket
) -> None:
    first = push(published, bucket.address)
    assert first.files == first.offered
    assert devices_see(bucket.mirror(tmp_path / "seen-1")) == devices_see(published)
    assert push(published, bucket.address).files == 0
    publish(build("two", seed=1, noise=0.3), published, signing, channel="stable", release="2")
    prune(published, signing, keep=1, grace_hours=0)
    second = push(published, bucket.address, delete=True)
    assert second.files is not None and 0 < second.files < second.offered and (second.removed or 0) > 2
    assert devices_see(bucket.mirror(tmp_path / "seen-2")) == devices_see(published)
    headers = bucket.client.head_object(Bucket=bucket.name, Key="fleet/metadata/timestamp.json")
    assert (headers["ContentType"], headers["CacheControl"]) == ("application/json", "no-cache")


@needs_moto
def test_a_push_to_a_bucket_cut_at_every_object_shows_the_old_or_the_new(
    published: Path, build: Build, signing: Signing, tmp_path: Path, bucket: Bucket
) -> None:
    push(published, bucket.address)
    root = Path(shutil.copy(published / "metadata" / "1.root.json", tmp_path / "root.json"))
    publish(build("two", seed=1, noise=0.3), published, signing, channel="stable", release="2", delta_from=0)
    rotate(published, signing, "root")
    seen = set()
    real_upload, real_put = BucketDestination._upload, BucketDestination._put
    for number in range(100):
        # One more object than before: what was sent stays, as it does when the line breaks.
        left = [1]

        def once(real: Any, left: list[int] = left) -> Any:
            def send(self: BucketDestination, *arguments: Any, **named: Any) -> Any:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                return real(self, *arguments, **named)

            return send

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BucketDestination, "_upload", once(real_upload))
            patch.setattr(BucketDestination, "_put", once(real_put))
            try:
                push(published, bucket.address)
                finished = True
            except KeyboardInterrupt:
                finished = False
        view = verify(bucket.mirror(tmp_path / f"at{number}"), root=root).releases["stable/toy"]
        seen.add(view)
        if finished:
            assert view == ("1", "2") and seen == {("1",), ("1", "2")} and number > 5
            return
    raise AssertionError("it never ends")


@needs_moto
def test_of_two_publishers_to_a_bucket_the_second_is_refused(
    published: Path, build: Build, signing: Signing, tmp_path: Path, bucket: Bucket
) -> None:
    one, two = diverge(published, build, signing, tmp_path, bucket.address)
    for _ in range(2):
        with pytest.raises(PublishTrustError, match="somebody else publishes there"):
            push(two, bucket.address)
        refresh(two, signing)
    assert verify(bucket.mirror(tmp_path / "seen")).releases == {"stable/toy": ("1", "2")}
    # At the same moment: both saw the same timestamp, and the other one was faster.
    seen = BucketDestination(bucket.address).read("metadata/timestamp.json")
    refresh(one, signing)
    push(one, bucket.address)
    with pytest.raises(PublishTrustError, match="somebody else publishes there"):
        BucketDestination(bucket.address).switch(two, "metadata/timestamp.json", seen)
    with pytest.raises(PublishTrustError, match="somebody else publishes there"):
        BucketDestination(bucket.address).send(two, ["metadata/3.snapshot.json"], replace=False)
    verify(bucket.mirror(tmp_path / "after"))


@needs_moto
def test_the_server_itself_keeps_a_late_publisher_out(published: Path, bucket: Bucket) -> None:
    """Between our look and our PUT somebody else's timestamp came: the condition of the PUT fails, not our comparison."""
    push(published, bucket.address)
    target = BucketDestination(bucket.address)
    name = "metadata/timestamp.json"
    seen, etag = target._get(name)
    assert seen is not None
    bucket.client.put_object(Bucket=bucket.name, Key=f"fleet/{name}", Body=b"theirs")
    assert not target._put(name, b"mine", "no-cache", IfMatch=str(etag))
    assert not target._put(name, b"mine", "no-cache", IfNoneMatch="*")
    assert target.read(name) == b"theirs"


@needs_moto
def test_a_bucket_that_refuses_is_named(published: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PublishError, match="refuses"):
        push(published, "s3://there-is-none/x")
    with pytest.raises(PublishError, match="no bucket"):
        push(published, "s3://")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    with pytest.raises(PublishError, match="redentials"):
        push(published, bucket.address)


def test_a_bucket_without_its_client_says_what_to_install(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ExtraMissing) as caught:
        push(published, "s3://bucket/x")
    assert "edgewright[s3]" in caught.value.remedy


def test_the_command(published: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(release, ["push", str(published), str(tmp_path / "web")], catch_exceptions=False)
    assert result.exit_code == 0 and "files sent to" in result.output
