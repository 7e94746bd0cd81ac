"""Hostile update servers, from the device's side. In every case the active release stays, and nothing else is written for long."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuf.api.metadata import Metadata

from device_agent.config import AgentConfig
from device_agent.errors import NetworkError, TrustError
from device_agent.store import confirm, store_for
from device_agent.update import update_all
from profiles.errors import EdgewrightError
from runtimes.artifact.index import MAX_INDEX_BYTES, index_path
from runtimes.artifact.manifest import MAX_MANIFEST_BYTES
from runtimes.errors import ManifestError
from tests.simulators.repository import CHANNEL, MODEL, RepositorySimulator, toy_model

MOST_BYTES = 64 << 20  # an endless answer must end long before this


@pytest.fixture
def device(repository: RepositorySimulator, config: AgentConfig) -> AgentConfig:
    """Runs r1, confirmed; r2 is published."""
    repository.publish("r1")
    update_all(config)
    confirm(store_for(config.data_dir, MODEL))
    repository.publish("r2", w=5.0)
    return config


def assert_r1_stays(config: AgentConfig) -> None:
    store = store_for(config.data_dir, MODEL)
    state = store.recover()
    assert state.active is not None and state.active.release == "r1" and state.floor == 1
    assert store.check(state.active.slot) == state.active


def refused(config: AgentConfig, *kinds: type[EdgewrightError]) -> str:
    with pytest.raises(kinds) as caught:
        update_all(config)
    assert_r1_stays(config)
    return str(caught.value)


# --- metadata ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ("snapshot", "targets"))
def test_mixed_metadata_of_two_versions_is_refused(
    repository: RepositorySimulator, device: AgentConfig, role: str
) -> None:
    """Each file is signed; together they never were."""
    folder = repository.folder / "metadata"
    shutil.copy(folder / f"{repository.version - 1}.{role}.json", folder / f"{repository.version}.{role}.json")
    refused(device, TrustError)


def test_a_frozen_repository_is_noticed_when_it_expires(repository: RepositorySimulator, device: AgentConfig) -> None:
    update_all(device)
    from datetime import UTC, datetime, timedelta

    repository.expires = datetime.now(UTC) - timedelta(seconds=1)
    repository.commit()
    with pytest.raises(TrustError, match="expired"):
        update_all(device)


def test_metadata_without_its_signature_is_refused(repository: RepositorySimulator, device: AgentConfig) -> None:
    for name in (f"{repository.version}.targets.json", "timestamp.json"):
        path = repository.folder / "metadata" / name
        kept = path.read_bytes()
        metadata = Metadata[Any].from_bytes(kept)
        metadata.signatures.clear()
        path.write_bytes(metadata.to_bytes())
        refused(device, TrustError)
        path.write_bytes(kept)


def test_a_root_signed_by_itself_alone_is_refused(repository: RepositorySimulator, device: AgentConfig) -> None:
    """The threshold of the old root is not met: whoever holds only a new key cannot take the device over."""
    stranger = RepositorySimulator(repository.folder.with_name("stranger"))
    root = Metadata[Any].from_bytes(stranger.root.read_bytes())
    root.signed.version = 2
    root.signatures.clear()
    root.sign(stranger.signer)
    (repository.folder / "metadata" / "2.root.json").write_bytes(root.to_bytes())
    refused(device, TrustError)


@pytest.mark.parametrize(
    "body",
    (
        b"[" * 200_000,
        b'{"signed":' * 50_000,
        b'{"a":1,' * 1000,
        b'{"signed": 1e999999, "signatures": []}',
        b"\xff\xfe\x00",
        b"",
    ),
    ids=("deep-lists", "deep-objects", "broken", "huge-number", "no-text", "empty"),
)
def test_absurd_json_as_metadata_is_refused(repository: RepositorySimulator, device: AgentConfig, body: bytes) -> None:
    (repository.folder / "metadata" / "timestamp.json").write_bytes(body)
    refused(device, TrustError)


@pytest.mark.parametrize("role", ("timestamp", "snapshot", "targets"))
def test_metadata_that_is_rolled_back_is_refused(
    repository: RepositorySimulator, device: AgentConfig, role: str
) -> None:
    """Everything is signed and was once offered; the device has seen what came after it."""
    version, folder = repository.version, repository.folder / "metadata"
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    repository.commit()
    update_all(device, dry_run=True)
    before = sorted((p.name, p.read_bytes()) for p in (device.data_dir / "trust" / "tuf").rglob("*.json"))
    if role == "timestamp":
        (folder / "timestamp.json").write_bytes(old["timestamp.json"])
    else:  # a new timestamp over an old snapshot, or a new snapshot over old targets
        from tuf.api.metadata import MetaFile, Snapshot, Timestamp

        new, expires = repository.version + 1, repository.expires
        snapshot_version = version if role == "snapshot" else new
        if role == "targets":
            snapshot = Snapshot(version=new, expires=expires, meta={"targets.json": MetaFile(version)})
            repository._write(f"metadata/{new}.snapshot.json", repository._signed(snapshot))
        stamp = Timestamp(version=new, expires=expires, snapshot_meta=MetaFile(snapshot_version))
        repository._write("metadata/timestamp.json", repository._signed(stamp))
    with pytest.raises(TrustError):
        update_all(device)
    assert_r1_stays(device)
    after = {p.name: p.read_bytes() for p in (device.data_dir / "trust" / "tuf").rglob("*.json")}
    assert after["targets.json"] == dict(before)["targets.json"]


def test_metadata_of_a_strangers_key_is_refused(
    repository: RepositorySimulator, device: AgentConfig, tmp_path: Path
) -> None:
    stranger = RepositorySimulator(tmp_path / "stranger")
    for release in ("r1", "r2", "r3", "r4"):
        stranger.publish(release)
    for name in ("timestamp.json", "4.snapshot.json", "4.targets.json"):
        shutil.copy(stranger.folder / "metadata" / name, repository.folder / "metadata" / name)
    refused(device, TrustError)


# --- signed content that is wrong all the same ------------------------------------------------------------------------------


def resigned(repository: RepositorySimulator, path: str, data: bytes) -> None:
    """Sign ``data`` as the target ``path``: a publisher gone wrong, or taken over."""
    from tuf.api.metadata import MetaFile, Snapshot, TargetFile, Targets, Timestamp

    repository.version += 1
    version, expires = repository.version, repository.expires
    targets = Targets(version=version, expires=expires)
    for name, content in {**repository.targets, path: data}.items():
        info = TargetFile.from_data(name, content, ["sha256"])
        targets.targets[name] = info
        folder, _, base = name.rpartition("/")
        repository._write(f"targets/{folder}/{info.hashes['sha256']}.{base}", content)
    snapshot = Snapshot(version=version, expires=expires, meta={"targets.json": MetaFile(version)})
    timestamp = Timestamp(version=version, expires=expires, snapshot_meta=MetaFile(version))
    repository._write(f"metadata/{version}.targets.json", repository._signed(targets))
    repository._write(f"metadata/{version}.snapshot.json", repository._signed(snapshot))
    repository._write("metadata/timestamp.json", repository._signed(timestamp))


@pytest.mark.parametrize(
    "change",
    (
        lambda index: b"[" * 100_000,
        lambda index: b" " * (MAX_INDEX_BYTES + 1),
        lambda index: index.replace(b'"channel"', b'"channel":"x","channel"', 1),
        lambda index: index.replace(b'"r2/manifest.json"', b'"../../../etc/passwd"'),
        lambda index: index.replace(b'"sequence":2', b'"sequence":-2'),
    ),
    ids=("deep", "large", "duplicate-key", "path-traversal", "negative"),  # of the index
)
def test_a_signed_index_that_is_absurd_is_refused(
    repository: RepositorySimulator, device: AgentConfig, change: Callable[[bytes], bytes]
) -> None:
    path = index_path(CHANNEL, MODEL)
    resigned(repository, path, change(repository.targets[path]))
    said = refused(device, ManifestError, TrustError)
    assert "index" in said, said  # its signature holds: it is the content that is refused


@pytest.mark.parametrize(
    "change",
    (
        lambda document: document.update({"artifacts": [document["artifacts"][0] | {"path": "../../../escaped"}]}),
        lambda document: document["self_test"]["vectors"].update({"path": "/etc/escaped"}),
        lambda document: document.update({"model": "another"}),
        lambda document: document.update({"sequence": 99}),
        lambda document: document.update({"notes": "x" * (MAX_MANIFEST_BYTES + 1)}),
    ),
    ids=("traversal", "absolute-path", "another-model", "another-sequence", "large"),
)
def test_a_signed_manifest_that_is_absurd_is_refused(
    repository: RepositorySimulator, device: AgentConfig, change: Callable[[dict[str, Any]], None]
) -> None:
    path = f"{CHANNEL}/{MODEL}/r2/manifest.json"
    document = json.loads(repository.targets[path])
    change(document)
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    repository.targets[path] = data
    import hashlib

    entry = repository.entries[-1]
    digest = hashlib.sha256(data).hexdigest()
    repository.entries[-1] = entry.model_copy(update={"manifest_sha256": digest})
    repository.commit()
    said = refused(device, ManifestError, TrustError)
    assert "manifest" in said.lower(), said
    assert not list(device.data_dir.parent.rglob("escaped"))


def test_a_manifest_with_a_key_twice_is_refused(repository: RepositorySimulator, device: AgentConfig) -> None:
    """Two readers could take two values; here nobody takes one."""
    import hashlib

    path = f"{CHANNEL}/{MODEL}/r2/manifest.json"
    data = repository.targets[path].replace(b'"release":"r2"', b'"release":"r1","release":"r2"', 1)
    repository.targets[path] = data
    changed = {"manifest_sha256": hashlib.sha256(data).hexdigest()}
    repository.entries[-1] = repository.entries[-1].model_copy(update=changed)
    repository.commit()
    assert "twice" in refused(device, ManifestError)


def _flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    "damage",
    (_flip, lambda data: data[:-1], lambda data: data + b"x", lambda data: b""),
    ids=("flipped-bit", "truncated", "longer", "empty"),
)
@pytest.mark.parametrize("name", ("index.json", "manifest.json", "model.onnx", "vectors.npz"))
def test_a_target_that_is_not_the_signed_one_is_refused(
    repository: RepositorySimulator, device: AgentConfig, name: str, damage: Callable[[bytes], bytes]
) -> None:
    file = repository.target_file(name)
    file.write_bytes(damage(file.read_bytes()))
    config = device.model_copy(update={"update": device.update.model_copy(update={"attempts": 1})})
    refused(config, TrustError, NetworkError)


def test_a_patch_bomb_is_stopped_at_the_size_of_the_artifact(
    repository: RepositorySimulator, device: AgentConfig, tmp_path: Path
) -> None:
    """A well-made patch of some kilobytes, signed for this base and this result, that would unpack to 32 MB."""
    from compiler.publish.delta import encode_delta

    (tmp_path / "base").write_bytes(repository.artifacts["r1"])
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(32 << 20)
    encode_delta(tmp_path / "base", tmp_path / "huge", tmp_path / "bomb")
    bomb = (tmp_path / "bomb").read_bytes()
    assert len(bomb) < 1 << 18
    # Ballast: a delta is taken only where it is smaller than the artifact.
    model = toy_model(7.0, 1.0, ballast=np.random.default_rng(1).normal(size=1 << 16).astype(np.float32))
    assert len(bomb) < len(model) < 1 << 20
    repository.publish("r3", model, w=7.0, delta=("r1", bomb))
    largest = [0]
    real = Path.replace

    def watched(self: Path, target: Any) -> Path:
        largest[0] = max(largest[0], self.stat().st_size if self.is_file() else 0)
        return real(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", watched)
        (result,) = update_all(device)
    assert (result.outcome, result.release, result.via) == ("activated", "r3", "full")
    assert 0 < largest[0] <= len(model)


def test_an_artifact_larger_than_the_device_takes_is_refused_before_it_is_fetched(
    repository: RepositorySimulator, device: AgentConfig
) -> None:
    limits = device.update.model_copy(update={"max_artifact_bytes": 10})
    assert "limit 10" in refused(device.model_copy(update={"update": limits}), TrustError)


def test_a_patch_for_another_base_and_a_patch_bomb_cost_only_the_full_file(
    repository: RepositorySimulator, device: AgentConfig
) -> None:
    for number, patch in enumerate((b"EWD\x01" + bytes(200), b"\xfd7zXZ\x00" + bytes(500), bytes(10)), 3):
        model = toy_model(float(number), 1.0)
        repository.publish(f"r{number}", model, w=float(number), delta=("r1", patch))
    (result,) = update_all(device)
    assert (result.outcome, result.release, result.via) == ("activated", "r5", "full")


# --- the wire ----------------------------------------------------------------------------------------------------------


@contextmanager
def hostile(folder: Path, answer: Callable[[BaseHTTPRequestHandler, str], bool]) -> Iterator[str]:
    """A server that serves ``folder`` where ``answer`` does not answer itself (and return True)."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            try:
                if answer(self, self.path):
                    return
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(path.stat().st_size))
                self.end_headers()
                self.wfile.write(path.read_bytes())
            except (BrokenPipeError, ConnectionResetError):
                pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("victim", ("timestamp.json", "2.root.json", ".index.json", ".manifest.json", "model.onnx"))
def test_endless_data_is_cut_off(repository: RepositorySimulator, device: AgentConfig, victim: str) -> None:
    sent = [0]

    def answer(handler: BaseHTTPRequestHandler, path: str) -> bool:
        if not path.endswith(victim):
            return False
        handler.send_response(200)
        handler.end_headers()
        while sent[0] < MOST_BYTES:
            handler.wfile.write(bytes(1 << 16))
            sent[0] += 1 << 16
        return True

    with hostile(repository.folder, answer) as url:
        refused(device.model_copy(update={"repository": url}), TrustError, NetworkError)
    assert 0 < sent[0] < MOST_BYTES
    kept = sum(path.stat().st_size for path in device.data_dir.rglob("*") if path.is_file())
    assert kept < 1 << 20


def test_data_that_trickles_is_given_up(repository: RepositorySimulator, device: AgentConfig) -> None:
    release = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, path: str) -> bool:
        if not path.endswith("model.onnx"):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not release.wait(0.05):
            handler.wfile.write(b"x")
        return True

    limits = {"min_speed_bytes_s": 1000, "speed_window_s": 0.3, "timeout_s": 5.0, "attempts": 1}
    with hostile(repository.folder, answer) as url:
        slow = {"repository": url, "update": device.update.model_copy(update=limits)}
        assert "bytes/s" in refused(device.model_copy(update=slow), NetworkError)
        release.set()


def test_redirects_in_a_circle_end(repository: RepositorySimulator, device: AgentConfig) -> None:
    asked = [0]

    def answer(handler: BaseHTTPRequestHandler, path: str) -> bool:
        asked[0] += 1
        handler.send_response(302)
        handler.send_header("Location", path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    with hostile(repository.folder, answer) as url:
        refused(device.model_copy(update={"repository": url}), NetworkError)
    assert asked[0] < 20
