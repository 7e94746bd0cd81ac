"""A tiny real TUF repository of plain files, publishing a toy model y = x * w + b; and an HTTP server with faults."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from runtimes.artifact.index import SIGNED_FIELD, IndexEntry, ReleaseIndex, Rollout, delta_path, index_path
from runtimes.artifact.manifest import Manifest, read_manifest

MODEL = "toy"
CHANNEL = "stable"
PROFILE = "raspberry-pi-4b"
WIDTH = 4
SHAPE: tuple[int | None, ...] = (None, WIDTH)


def toy_model(w: float, b: float, *, ballast: np.ndarray | None = None, shape: tuple[int | None, ...] = SHAPE) -> bytes:
    """float32[N, 4] -> float32[N, 4]. ``ballast`` is an initializer that nothing reads: weight for deltas."""
    dims = ", ".join("N" if size is None else str(size) for size in shape)
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        toy (float[{dims}] x) => (float[{dims}] y) <float w = {{{w!r}}}, float b = {{{b!r}}}> {{
            scaled = Mul(x, w)
            y = Add(scaled, b)
        }}
    """)
    if ballast is not None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(ballast, "ballast"))
    return model.SerializeToString()


def toy_nan() -> bytes:
    """0 / 0 in every element."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        toy (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{
            zero = Sub(x, x)
            y = Div(zero, zero)
        }}
    """)
    return model.SerializeToString()


def vectors(w: float, b: float, shape: tuple[int | None, ...] = SHAPE) -> bytes:
    size = [6 if one is None else one for one in shape]
    x = np.random.default_rng(7).normal(size=size).astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, **{"in/x": x, "out/y": x * np.float32(w) + np.float32(b)})
    return buffer.getvalue()


def _ref(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class RepositorySimulator:
    """Publishes releases; every ``publish`` writes a new consistent snapshot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
        self.signer = CryptoSigner.generate_ed25519()
        self.targets: dict[str, bytes] = {}
        self.custom: dict[str, dict[str, Any]] = {}
        self.entries: list[IndexEntry] = []
        self.artifacts: dict[str, bytes] = {}
        self.version = 0
        self.signed_at: int | None = None  # seconds since 1970
        root = Root(version=1, expires=self.expires, consistent_snapshot=True)
        for role in ("root", "timestamp", "snapshot", "targets"):
            root.add_key(self.signer.public_key, role)
        self._write("metadata/1.root.json", self._signed(root))
        self.root = folder / "metadata" / "1.root.json"

    def publish(
        self,
        release: str,
        model: bytes | None = None,
        *,
        w: float = 2.0,
        b: float = 1.0,
        rollout: Rollout | None = None,
        delta: tuple[str, bytes] | None = None,
        self_test: dict[str, Any] | None = None,
        preprocessing: dict[str, Any] | None = None,
        labels: tuple[str, ...] | None = None,
        form: tuple[str, str, str] = ("model.onnx", "onnx", "onnxruntime"),
        shape: tuple[int | None, ...] = SHAPE,
    ) -> Manifest:
        """Add a release. ``delta`` is (base release, patch bytes); ``form`` the artifact's path, format and runtime."""
        path, kind, runtime = form
        prepared = {"preprocessing": preprocessing} if preprocessing else {}
        labelled = {"labels": list(labels)} if labels else {}
        artifact = toy_model(w, b, shape=shape) if model is None else model
        checks = vectors(w, b, shape)
        manifest = read_manifest(
            Manifest.model_validate(
                {
                    "schema": "edgewright.manifest/1",
                    "model": MODEL,
                    "release": release,
                    "sequence": len(self.entries) + 1,
                    "created": "2026-01-01T00:00:00Z",
                    "inputs": [
                        {"name": "x", "dtype": "float32", "shape": list(shape), "range": [-100.0, 100.0]} | prepared
                    ],
                    "outputs": [
                        {"name": "y", "dtype": "float32", "shape": list(shape), "semantic": "logits"} | labelled
                    ],
                    "artifacts": [
                        {
                            **_ref(path, artifact),
                            "format": kind,
                            "precision": "fp32",
                            "runtime": runtime,
                            "profiles": [PROFILE],
                        }
                    ],
                    "self_test": {"vectors": _ref("vectors.npz", checks), "max_abs_error": 1e-5, **(self_test or {})},
                    "drift": {"inputs": {"x": {"edges": [-1.0, 0.0, 1.0], "counts": [10, 40, 40, 10]}}},
                }
            ).to_bytes()
        )
        data = manifest.to_bytes()
        base = f"{CHANNEL}/{MODEL}"
        self.artifacts[release] = artifact
        self.targets[f"{base}/{release}/manifest.json"] = data
        self.targets[f"{base}/{release}/{path}"] = artifact
        self.targets[f"{base}/{release}/vectors.npz"] = checks
        if delta is not None:
            digests = [hashlib.sha256(a).hexdigest() for a in (self.artifacts[delta[0]], artifact)]
            self.targets[delta_path(CHANNEL, MODEL, *digests)] = delta[1]
        self.entries.append(
            IndexEntry(
                release=release,
                sequence=manifest.sequence,
                manifest=f"{release}/manifest.json",
                manifest_sha256=hashlib.sha256(data).hexdigest(),
                rollout=rollout or Rollout(),
            )
        )
        self.commit()
        return manifest

    def commit(self) -> None:
        """Sign and write everything as a new version."""
        self.version += 1
        index = ReleaseIndex(channel=CHANNEL, model=MODEL, releases=tuple(self.entries))
        self.targets[index_path(CHANNEL, MODEL)] = index.to_bytes()
        targets = Targets(version=self.version, expires=self.expires)
        for path, data in self.targets.items():
            info = TargetFile.from_data(path, data, ["sha256"])
            targets.targets[path] = info
            folder, _, name = path.rpartition("/")
            self._write(f"targets/{folder}/{info.hashes['sha256']}.{name}", data)
        meta = {"targets.json": MetaFile(self.version)}
        snapshot = Snapshot(version=self.version, expires=self.expires, meta=meta)
        timestamp = Timestamp(version=self.version, expires=self.expires, snapshot_meta=MetaFile(self.version))
        if self.signed_at is not None:
            timestamp.unrecognized_fields[SIGNED_FIELD] = self.signed_at
        self._write(f"metadata/{self.version}.targets.json", self._signed(targets))
        self._write(f"metadata/{self.version}.snapshot.json", self._signed(snapshot))
        self._write("metadata/timestamp.json", self._signed(timestamp))

    def _signed(self, signed: Any) -> bytes:
        metadata = Metadata(signed)
        metadata.sign(self.signer)
        return metadata.to_bytes()

    def _write(self, path: str, data: bytes) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def target_file(self, name: str) -> Path:
        """The stored file of the newest target that ends in ``name``."""
        path = [p for p in self.targets if p.endswith(name)][-1]
        digest = hashlib.sha256(self.targets[path]).hexdigest()
        folder, _, base = path.rpartition("/")
        return self.folder / "targets" / folder / f"{digest}.{base}"


class Faults:
    """What the server does wrong: ``drop_after`` bytes of each target body the connection ends, ``drops`` times."""

    def __init__(self) -> None:
        self.drop_after: int | None = None
        self.drops = 0
        self.status: int | None = None
        self.ranges: list[str] = []
        self.bytes_sent = 0


@contextmanager
def serve(folder: Path, faults: Faults) -> Iterator[str]:
    """Serve ``folder`` on loopback with ranges; yields the base URL."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            if faults.status is not None or not path.is_file():
                self.send_error(faults.status or 404)
                return
            data, wanted = path.read_bytes(), self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if wanted:
                faults.ranges.append(wanted)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            body = data[start:]
            if faults.drop_after is not None and faults.drops > 0 and "/targets/" in self.path and "model" in self.path:
                faults.drops -= 1
                body = body[: faults.drop_after]
                self.close_connection = True
            self.wfile.write(body)
            faults.bytes_sent += len(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
