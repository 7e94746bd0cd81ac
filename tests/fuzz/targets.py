"""What decodes bytes that come from outside: manifest, index, delta patches, archives, and the walkers over model files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from compiler.publish.delta import encode_delta
from compiler.publish.delta.walkers import find_tensors
from device_agent.errors import NetworkError
from device_agent.source import BundleSource
from runtimes.artifact.archive import pack_folder, unpack
from runtimes.artifact.delta import apply_delta
from runtimes.artifact.index import read_index
from runtimes.artifact.manifest import read_manifest
from runtimes.artifact.settings import read_settings
from tests.fuzz.guided import Target
from tests.simulators.repository import CHANNEL, MODEL, RepositorySimulator, toy_model

RESULT_LIMIT = 1 << 20
DELTA_MEMORY = 24 << 20  # what docs/formats/delta.md promises beyond interpreter and numpy
SMALL = 8 << 20


def targets(folder: Path) -> Iterator[Target]:
    """All of them, with seeds made in ``folder``; what they write goes below it too."""
    repository = RepositorySimulator(folder / "repository")
    repository.publish("r1")
    repository.publish("r2", w=5.0)
    base = f"{CHANNEL}/{MODEL}"
    manifests = [repository.targets[f"{base}/{release}/manifest.json"] for release in ("r1", "r2")]
    yield Target("manifest", read_manifest, manifests, SMALL)
    yield Target("index", read_index, [repository.targets[f"{base}/index.json"]], SMALL)
    seed = b'{"schema":"edgewright.agent-settings/1","settings":{"update.interval_s":900,"update.windows":["sat 02:00-05:00 UTC"]}}'
    yield Target("settings", read_settings, [seed], SMALL)
    yield _bundle(folder, repository)
    models = list(_models())
    yield Target("walkers", find_tensors, models, SMALL)
    yield _delta(folder, models)
    yield _archive(folder)


def _models() -> Iterator[bytes]:
    yield toy_model(2.0, 1.0, ballast=np.arange(64, dtype=np.float32))
    yield toy_model(3.0, 1.0, ballast=np.arange(64, dtype=np.int8))
    from compiler.exporters.tflite.writer import GraphWriter

    writer = GraphWriter()
    x = writer.tensor("x", (1, 8), np.dtype(np.float32))
    y = writer.tensor("y", (1, 8), np.dtype(np.float32))
    writer.operator("ADD", [x, writer.constant("w", np.arange(8, dtype=np.float32))], [y], "AddOptions")
    yield bytes(writer.finish([("x", x)], [("y", y)], description="fuzz", metadata={"a": "b"}))


def _delta(folder: Path, models: list[bytes]) -> Target:
    work = folder / "delta"
    work.mkdir()
    base = work / "base"
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(512).astype(np.float32)
    base.write_bytes(toy_model(2.0, 1.0, ballast=weights))
    seeds = []
    for number, noise in enumerate((0.0, 1e-4, 0.1)):
        (work / "new").write_bytes(toy_model(2.0 + number, 1.0, ballast=weights + np.float32(noise)))
        encode_delta(base, work / "new", work / "patch")
        seeds.append((work / "patch").read_bytes())
    destination = work / "out"
    before = base.read_bytes()
    outside = sorted(p.relative_to(folder) for p in folder.rglob("*") if "delta" not in p.parts)

    def run(data: bytes) -> None:
        (work / "patch").write_bytes(data)
        try:
            apply_delta(base, work / "patch", destination, max_result_bytes=RESULT_LIMIT)
            assert destination.stat().st_size <= RESULT_LIMIT
        finally:
            destination.unlink(missing_ok=True)
            assert sorted(p.name for p in work.iterdir()) == ["base", "new", "patch"], "something was left behind"
            assert sorted(p.relative_to(folder) for p in folder.rglob("*") if "delta" not in p.parts) == outside
        assert base.read_bytes() == before

    return Target("delta", run, seeds, DELTA_MEMORY)


def _bundle(folder: Path, repository: RepositorySimulator) -> Target:
    """An offline bundle as a device reads it: its own index of entries, and what they say they hold."""
    work = folder / "bundle"
    work.mkdir()
    names = ("metadata/timestamp.json", "metadata/1.root.json")
    with zipfile.ZipFile(work / "seed.zip", "w") as archive:
        for name in names:
            archive.write(repository.folder / name, name)
    with zipfile.ZipFile(work / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            names[0], bytes(64 << 20)
        )  # 64 MiB in 64 KiB: a reader takes it in pieces, and python-tuf caps it
    seeds = [(work / name).read_bytes() for name in ("seed.zip", "bomb.zip")]
    before = sorted(p.relative_to(folder) for p in folder.rglob("*"))

    def run(data: bytes) -> None:
        (work / "seed.zip").write_bytes(data)
        source = BundleSource(work / "seed.zip")
        for name in names:
            try:
                taken = 0
                for piece in source.read(name)[1]:
                    taken += len(piece)
                    if taken > RESULT_LIMIT:
                        break
            except NetworkError:
                continue
        assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == before, "something was written"

    return Target("bundle", run, seeds, SMALL)


def _archive(folder: Path) -> Target:
    work = folder / "archive"
    (work / "source" / "Data").mkdir(parents=True)
    (work / "source" / "Manifest.json").write_text("{}")
    (work / "source" / "Data" / "weight.bin").write_bytes(bytes(range(64)))
    pack_folder(work / "source", work / "packed")
    seed = (work / "packed").read_bytes()
    outside = sorted(p.relative_to(folder) for p in folder.rglob("*") if "archive" not in p.parts)

    def run(data: bytes) -> None:
        import shutil

        (work / "in.zip").write_bytes(data)
        try:
            unpack(work / "in.zip", work / "out", RESULT_LIMIT)
        finally:
            shutil.rmtree(work / "out", ignore_errors=True)
            left = {p.name for p in work.iterdir()} - {"source", "packed", "in.zip"}
            assert not left, f"left behind: {left}"
        assert sorted(p.relative_to(folder) for p in folder.rglob("*") if "archive" not in p.parts) == outside

    return Target("archive", run, [seed], SMALL)
