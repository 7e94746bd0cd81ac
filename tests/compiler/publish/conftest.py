"""A toy build folder and a repository to publish it to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from compiler.publish.draft import DRAFT_NAME
from compiler.publish.release import Signing, init
from compiler.request import BuildRequest
from profiles.schema import Precision
from runtimes.artifact.files import sha256_tree, size_tree
from runtimes.artifact.manifest import ArtifactRef, FileRef, InputSpec, Manifest, OutputSpec, SelfTest
from tests.compiler.small_net import save_net

NOW = 1_900_000_000  # 2030: later than any clock that these tests run under, so that signatures hold
Build = Callable[..., Path]


def _ref(build: Path, path: str) -> dict[str, object]:
    return {"path": path, "size_bytes": size_tree(build / path), "sha256": sha256_tree(build / path)}


def _onnx(seed: int, noise: float) -> bytes:
    random = np.random.default_rng(0)
    weights = [np.round(random.normal(0, 40, 4000)).astype(np.int8) for _ in range(3)]
    tuned = np.random.default_rng(seed)
    weights = [w + np.round(tuned.normal(0, noise, w.shape)).astype(np.int8) for w in weights]
    tensors = [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)]
    graph = helper.make_graph([helper.make_node("Identity", ["w0"], ["y"])], "net", [], [], initializer=tensors)
    return bytes(helper.make_model(graph, ir_version=10).SerializeToString(deterministic=True))


def write_build(build: Path, *, seed: int = 0, noise: float = 0.0, model: str = "toy") -> Path:
    """What ``edgewright build`` leaves: artifacts, an .mlpackage folder, self-test vectors, the draft."""
    package = build / "coreml" / "toy.mlpackage" / "Data"
    package.mkdir(parents=True)
    (package.parent / "Manifest.json").write_text("{}")
    (package / "weight.bin").write_bytes(np.random.default_rng(seed).bytes(500))
    (build / "toy.int8.onnx").write_bytes(_onnx(seed, noise))
    np.savez(build / "vectors.npz", **{"in/x": np.zeros((1, 2), np.float32), "out/y": np.zeros((1, 2), np.float32)})
    shape = {"name": "x", "dtype": "float32", "shape": (1, 2)}
    common = {"precision": "int8"}
    draft = Manifest(
        model=model,
        release="draft",
        sequence=1,
        created="draft",
        inputs=(InputSpec.model_validate(shape),),
        outputs=(OutputSpec.model_validate(shape | {"name": "y"}),),
        artifacts=(
            ArtifactRef.model_validate(
                _ref(build, "toy.int8.onnx")
                | common
                | {"format": "onnx", "runtime": "onnxruntime", "profiles": ("raspberry-pi-4b",)}
            ),
            ArtifactRef.model_validate(
                _ref(build, "coreml/toy.mlpackage")
                | common
                | {"format": "coreml", "runtime": "coreml", "profiles": ("iphone-15",), "archive": "zip"}
            ),
        ),
        self_test=SelfTest(vectors=FileRef.model_validate(_ref(build, "vectors.npz")), max_abs_error=0.1),
        quality={
            "provenance": {
                "source": {"kind": "onnx", "location": "toy.onnx", "sha256": "c" * 64},
                "tools": {"onnx": "1.2.3", "numpy": "4.5"},
                "data": {"calibration": "d" * 64, "evaluation": None},
            }
        },
    )
    (build / DRAFT_NAME).write_bytes(draft.to_bytes())
    return build


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(name: str = "build", **options: object) -> Path:
        (tmp_path / name).mkdir()
        return write_build(tmp_path / name, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def signing(tmp_path: Path) -> Signing:
    return Signing(tmp_path / "keys", now=NOW)


@pytest.fixture
def repo(tmp_path: Path, signing: Signing) -> Path:
    init(tmp_path / "repo", signing, channels=("stable", "beta"))
    return tmp_path / "repo"


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder by relative path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def copy(source: Path, destination: Path) -> Path:
    shutil.copytree(source, destination)
    return destination


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real build of a small net, as ONNX for the Raspberry Pi. Publishing reads it and changes nothing."""
    from compiler.pipeline import build

    folder = tmp_path_factory.mktemp("built")
    save_net(folder / "net.onnx")
    request = BuildRequest(
        str(folder / "net.onnx"), folder / "out", profiles=("raspberry-pi-4b",), precisions=(Precision.FP32,)
    )
    assert build(request).ok
    return folder / "out"
