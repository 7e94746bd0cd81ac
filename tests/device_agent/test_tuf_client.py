"""tests/tuf_client.py as the TUF project's conformance suite calls it: a process per command, over HTTP."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.simulators.repository import Faults, RepositorySimulator, serve

ROOT = Path(__file__).resolve().parents[2]


class Client:
    """One device of the suite."""

    def __init__(self, folder: Path, url: str) -> None:
        self.metadata, self.targets, self.url = folder / "metadata", folder / "targets", url
        for path in (self.metadata, self.targets):
            path.mkdir(parents=True)

    def run(self, *arguments: str) -> int:
        command = [sys.executable, "-m", "tests.tuf_client", "--metadata-dir", str(self.metadata), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True).returncode

    def refresh(self) -> int:
        return self.run("--metadata-url", f"{self.url}/metadata", "refresh")

    def download(self, *names: str) -> int:
        wanted = [part for name in names for part in ("--target-name", name)]
        where = ["--target-base-url", f"{self.url}/targets/", "--target-dir", str(self.targets)]
        return self.run("--metadata-url", f"{self.url}/metadata/", *wanted, *where, "download")

    def version(self, role: str) -> int:
        return int(json.loads((self.metadata / f"{role}.json").read_bytes())["signed"]["version"])


@pytest.fixture
def published(repository: RepositorySimulator) -> RepositorySimulator:
    repository.publish("r1")
    return repository


def _target(repository: RepositorySimulator) -> str:
    """The signed path of the newest manifest."""
    return "stable/toy/r1/manifest.json"


def test_init_refresh_download(published: RepositorySimulator, tmp_path: Path) -> None:
    with serve(published.folder, Faults()) as url:
        client = Client(tmp_path / "client", url)
        assert client.run("init", str(published.root)) == 0
        assert client.version("root") == 1
        assert client.refresh() == 0
        assert {role: client.version(role) >= 1 for role in ("root", "timestamp", "snapshot", "targets")}
        assert client.download(_target(published)) == 0
        (made,) = client.targets.iterdir()
        assert json.loads(made.read_bytes())["release"] == "r1"
        assert client.download("stable/toy/nothing") == 1


def test_a_rolled_back_and_a_tampered_repository_are_refused(published: RepositorySimulator, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(published.folder, before)
    with serve(published.folder, Faults()) as url:
        client = Client(tmp_path / "client", url)
        assert client.run("init", str(published.root)) == 0 and client.refresh() == 0
        published.publish("r2")
        assert client.refresh() == 0
        newest = client.version("timestamp")
        shutil.rmtree(published.folder / "metadata")
        shutil.copytree(before / "metadata", published.folder / "metadata")
        assert client.refresh() == 1
        assert client.version("timestamp") == newest
        target = next(path for path in (published.folder / "targets").rglob("*manifest.json") if "r1" in str(path))
        target.write_bytes(target.read_bytes() + b" ")
        assert client.download(_target(published)) == 1
        assert not list(client.targets.iterdir())


def test_expired_metadata_and_a_foreign_root_are_refused(tmp_path: Path) -> None:
    late = RepositorySimulator(tmp_path / "late")
    late.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    late.publish("r1")
    other = RepositorySimulator(tmp_path / "other")
    with serve(late.folder, Faults()) as url:
        client = Client(tmp_path / "client", url)
        assert client.run("init", str(late.root)) == 0 and client.refresh() == 1
        stranger = Client(tmp_path / "stranger", url)
        assert stranger.run("init", str(other.root)) == 0 and stranger.refresh() == 1
    (tmp_path / "garbage.json").write_bytes(b"{}")
    assert Client(tmp_path / "third", "http://127.0.0.1:9").run("init", str(tmp_path / "garbage.json")) == 1
