"""Repositories on their way: whole at every moment, by copy and by rsync."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from compiler.cli.release import release
from compiler.errors import PublishError, PublishTrustError
from compiler.publish.client import verify
from compiler.publish.manage import prune
from compiler.publish.push import FolderDestination, RsyncDestination, destination_of, push
from compiler.publish.release import Signing, publish
from compiler.publish.rotate import rotate
from tests.compiler.publish.conftest import Build, copy, tree

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

        def cut(self: FolderDestination, source: Path, files: list[str], left: list[int] = left) -> int:
            for name in files:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= real(self, source, [name])
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


def test_the_command(published: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(release, ["push", str(published), str(tmp_path / "web")], catch_exceptions=False)
    assert result.exit_code == 0 and "files sent to" in result.output
