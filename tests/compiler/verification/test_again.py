"""A finished build verified once more: here by its own runtimes, and on a Mac that stands in for one by Core ML's three units."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.errors import DataError
from compiler.pipeline import build
from compiler.report.read import read_report
from compiler.request import BuildRequest
from compiler.verification.again import COMPUTE_UNITS, REJECTED_NAME, verify_again
from compiler.verification.child import Execution, execute
from profiles.schema import Format, Precision
from runtimes.artifact.manifest import read_manifest
from runtimes.coreml_reference.session import open_package
from runtimes.errors import ChildFailed
from runtimes.session import Array
from tests.compiler.small_net import save_net


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("again")
    save_net(folder / "net.onnx")
    request = BuildRequest(
        str(folder / "net.onnx"),
        folder / "out",
        formats=(Format.ONNX, Format.COREML),
        precisions=(Precision.FP32,),
    )
    assert build(request).ok
    return folder / "out"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "out")


def here(path: Path, unit: str | None, feeds: Mapping[str, Array]) -> Execution:
    """In this process, so that what stands in for Core ML is seen."""
    return execute(str(path), None, dict(feeds), 1, unit)


class MLModel:
    """Where coremltools' class of this name stands: the reference evaluator, off by ``noise`` on the Neural Engine."""

    noise = 0.0

    def __init__(self, path: str, compute_units: str) -> None:
        self._session = open_package(Path(path))
        self._unit = compute_units

    def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
        names = {spec.name: value for spec, value in zip(self._session.inputs, feeds.values(), strict=True)}
        answers = self._session.run(names)
        return {name: a + (MLModel.noise if self._unit == "CPU_AND_NE" else 0) for name, a in answers.items()}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("coremltools")

    class Units(dict[str, str]):
        __members__ = dict.fromkeys(COMPUTE_UNITS)

    fake.ComputeUnit = Units({unit: unit for unit in COMPUTE_UNITS})  # type: ignore[attr-defined]
    fake.models = types.SimpleNamespace(MLModel=MLModel)  # type: ignore[attr-defined]
    fake.__spec__ = types.SimpleNamespace(submodule_search_locations=_real_places())  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(platform, "platform", lambda: "macOS-15.1-arm64-arm-64bit")
    monkeypatch.setattr(MLModel, "noise", 0.0)


def _real_places() -> list[str]:
    import importlib.util

    spec = importlib.util.find_spec("coremltools")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("coremltools, whose protobuf classes read packages, is not installed")
    return list(spec.submodule_search_locations)


def _evidence(folder: Path) -> dict[str, str]:
    document = json.loads((folder / "report.json").read_text("utf-8"))
    return {a["format"]: a["evidence"] for a in document["artifacts"]}


def test_a_report_read_back_is_the_report(finished: Path) -> None:
    text = (finished / "report.json").read_text("utf-8")
    assert read_report(finished).to_json() == json.loads(text)


def test_on_the_build_machine_nothing_is_promoted(folder: Path) -> None:
    if platform.system() == "Darwin":
        pytest.skip("Core ML runs here")
    report, ok = verify_again(folder, execute=here)
    assert ok and report.ok
    assert _evidence(folder) == {"onnx": "executed", "coreml": "reference-verified"}
    assert [v.unit for a in report.artifacts for v in a.verifications] == [None, None]


def test_on_a_mac_every_unit_runs_and_the_evidence_rises(folder: Path, mac: None) -> None:
    report, ok = verify_again(folder, execute=here)
    assert ok
    assert _evidence(folder) == {"onnx": "executed", "coreml": "device-verified"}
    package = next(a for a in report.artifacts if a.format == "coreml")
    assert [v.unit for v in package.verifications] == list(COMPUTE_UNITS)
    assert (package.runtime, package.runtime_version) == ("coreml", "15.1")
    assert [v.beside for v in package.verifications] == [None, 0.0, 0.0, 0.0]
    draft = read_manifest((folder / "manifest.draft.json").read_bytes())
    assert {a.format: a.quality["evidence"] for a in draft.artifacts}["coreml"] == "device-verified"
    page = (folder / "report.html").read_text("utf-8")
    assert "Verified later" in page and "CPU_AND_NE" in page and "macOS-15.1" in page


def test_back_on_linux_the_evidence_stays(folder: Path, mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_again(folder, execute=here)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    verify_again(folder, execute=here)
    assert _evidence(folder)["coreml"] == "device-verified"


def test_one_unit_that_differs_stops_the_release(folder: Path, mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLModel, "noise", 0.5)
    report, ok = verify_again(folder, execute=here)
    assert not ok and not report.ok
    assert _evidence(folder)["coreml"] == "reference-verified"
    assert [g.ok for g in report.gates if g.name == "verify" and g.artifact.endswith("mlpackage")] == [
        True,
        True,
        True,
        False,
    ]
    assert (folder / REJECTED_NAME).exists() and not (folder / "manifest.draft.json").exists()
    with pytest.raises(DataError, match="said no"):
        verify_again(folder, execute=here)


def test_a_unit_that_crashes_is_a_finding(folder: Path, mac: None) -> None:
    def fragile(path: Path, unit: str | None, feeds: Mapping[str, Array]) -> Execution:
        if unit == "CPU_AND_GPU":
            raise ChildFailed("The child died of signal 11.", remedy="Leave out this unit.")
        return here(path, unit, feeds)

    report, ok = verify_again(folder, units=("CPU_ONLY", "CPU_AND_GPU"), execute=fragile)
    package = next(a for a in report.artifacts if a.format == "coreml")
    assert not ok and [(v.unit, v.ok) for v in package.verifications] == [("CPU_ONLY", True), ("CPU_AND_GPU", False)]
    assert "signal 11" in package.verifications[1].reason
    assert read_report(folder).to_json() == report.to_json()


def test_a_changed_artifact_and_a_foreign_folder_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json"):
        verify_again(tmp_path)
    (folder / "net-fp32.onnx").write_bytes(b"other")
    with pytest.raises(DataError, match="changed since it was built"):
        verify_again(folder, execute=here)
    (folder / "report.json").write_text("{}")
    with pytest.raises(DataError, match="no report"):
        verify_again(folder)


def test_vectors_that_are_damaged_are_told(folder: Path) -> None:
    (folder / "selftest.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="cannot be read"):
        verify_again(folder, execute=here)


def test_the_command(folder: Path) -> None:
    from click.testing import CliRunner

    from compiler.cli.main import cli

    done = CliRunner().invoke(cli, ["verify", str(folder), "--json"])
    document = json.loads(done.stdout)
    assert done.exit_code == 0 and document["ok"]
    assert {v["artifact"] for v in document["verifications"]} == {"net-fp32.onnx", "net-fp32.mlpackage"}
    assert np.isfinite(document["verifications"][0]["parity"]["max_abs_error"])
