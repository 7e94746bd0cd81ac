"""The PyTorch importer: every kind of source, against PyTorch itself; and sources that mean harm."""

from __future__ import annotations

import importlib.util
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.errors import SourceError
from compiler.hub import Imported
from compiler.importers import import_model
from compiler.importers.base import ImportOptions
from compiler.passes.serialize import to_bytes
from runtimes.errors import InferenceFailed, InputMismatch
from runtimes.onnxruntime_session import open_bytes

torch = pytest.importorskip("torch")

FACTORY = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
    def forward(self, image, gain):
        return {"features": torch.nn.functional.relu6(self.norm(self.conv(image))), "gain": gain * 2}

def make():
    torch.manual_seed(0)
    return Two(), (torch.randn(2, 3, 8, 8), torch.randn(2, 1))

def bare():
    return make()[0]

def broken():
    raise OSError("no weights here")

def number():
    return 3

class Sorts(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real

def unexportable():
    return Sorts(), (torch.randn(3, 3),)
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(FACTORY, "utf-8")
    return path


def _agree(imported: Imported) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    data = to_bytes(imported.model)
    assert b"site-packages" not in data
    with open_bytes(data) as hub:
        feeds = {s.name: generator.standard_normal([d or 1 for d in s.shape]).astype(s.dtype) for s in hub.inputs}
        want, got = imported.reference.run(feeds), hub.run(feeds)
    assert list(want) == list(got)
    for name, expected in want.items():
        assert np.abs(got[name] - expected).max() <= 1e-5 * max(np.ptp(expected), 1e-6), name
    return got


def test_a_factory_in_a_file_keeps_names_and_gets_the_hubs_batch(factory: Path) -> None:
    imported = import_model(f"{factory}:make", ImportOptions(batch=1))
    assert [v.name for v in imported.model.graph.inputs] == ["image", "gain"]
    assert {k: v.shape for k, v in _agree(imported).items()} == {"features": (1, 4, 6, 6), "gain_output": (1, 1)}
    assert [s.shape for s in imported.reference.inputs] == [(None, 3, 8, 8), (None, 1)]
    assert [n.op_type for n in imported.model.graph] == ["Conv", "Clip", "Mul"]


def test_the_reference_checks_feeds_and_wraps_failures(factory: Path) -> None:
    reference = import_model(f"{factory}:make").reference
    with pytest.raises(InputMismatch):
        reference.run({"image": np.zeros((1, 3, 8, 8), np.float32)})
    with reference, pytest.raises(InputMismatch):
        reference.run({"image": np.zeros((1, 3, 8, 8)), "gain": np.zeros((1, 1), np.float32)})


def test_shapes_replace_missing_examples(factory: Path) -> None:
    with pytest.raises(SourceError, match="gain"):
        import_model(f"{factory}:bare")
    shapes = {"image": (1, 3, 5, 5), "gain": (1, 1)}
    got = _agree(import_model(f"{factory}:bare", ImportOptions(input_shapes=shapes)))
    assert got["features"].shape == (1, 4, 3, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", "no weights here"), ("number", "int"), ("missing", "missing"), ("unexportable", "ONNX")],
)
def test_bad_factories_end_in_one_typed_error(factory: Path, name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        import_model(f"{factory}:{name}")
    with pytest.raises(SourceError, match="cannot be imported"):
        import_model("no_such_module_anywhere:make")


def _program(dynamic: bool) -> Any:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    return torch.export.export(net.eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)


@pytest.mark.parametrize(("dynamic", "batch"), [(True, 1), (False, 2)])
def test_pt2(tmp_path: Path, dynamic: bool, batch: int) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(_program(dynamic), path)
    got = _agree(import_model(str(path), ImportOptions(batch=1)))
    assert {name: array.shape for name, array in got.items()} == {"output": (batch, 4)}


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder),))


def test_pt2_with_a_pickle_inside_runs_no_code(tmp_path: Path) -> None:
    good, bad, harm = tmp_path / "good.pt2", tmp_path / "bad.pt2", tmp_path / "harm"
    torch.export.save(_program(False), good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, pickle.dumps(Bomb(harm)) if name.endswith("sample_inputs/model.pt") else data)
    with pytest.raises(SourceError, match="sample_inputs"):
        import_model(str(bad))
    assert not harm.exists()


def test_pt_needs_a_network_and_permission(tmp_path: Path) -> None:
    path, harm = tmp_path / "net.pt", tmp_path / "harm"
    net = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval()
    torch.save(net.state_dict(), path)
    with pytest.raises(SourceError, match="weights, not the network") as caught:
        import_model(str(path))
    assert "module:factory" in caught.value.remedy
    torch.save(net, path)
    with pytest.raises(SourceError, match="can run code"):
        import_model(str(path))
    options = ImportOptions(allow_pickle=True, input_shapes={"input": (1, 4)})
    assert _agree(import_model(str(path), options))["output"].shape == (1, 2)
    torch.save(Bomb(harm), path)
    with pytest.raises(SourceError):
        import_model(str(path))
    assert not harm.exists()


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(SourceError):
        import_model(str(path))
    with pytest.raises(SourceError, match="not a file"):
        import_model(str(tmp_path / f"none{suffix}"))


def test_a_module_that_fails_at_run_time_is_typed() -> None:
    from compiler.importers.torch_session import TorchSession
    from runtimes.session import TensorSpec

    spec = (TensorSpec("x", "float32", (None, 3)),)
    with pytest.raises(InferenceFailed):
        TorchSession(torch.nn.Linear(4, 2), spec, spec).run({"x": np.zeros((1, 3), np.float32)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18"])
def test_timm_nets_keep_their_numbers(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec("timm") is None:  # importing it here would be too early for torchvision
        pytest.skip("timm is not installed")
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\nfrom tests.timm_models import create\n"
        f"def make():\n    return create({name!r}), (torch.randn(2, 3, 64, 64),)\n",
        "utf-8",
    )
    imported = import_model(f"{path}:make")
    _agree(imported)
    operators = {node.op_type for node in imported.model.graph}
    assert not operators & {"BatchNormalization", "ReduceMean", "Identity", "Flatten", "Squeeze", "Unsqueeze"}
