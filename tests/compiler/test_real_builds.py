"""Whole builds of real nets to all three formats in float and INT8: what `edgewright build` promises, on models from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.report.schema import ArtifactReport, Report
from compiler.request import BuildRequest
from profiles.schema import Format, Precision
from tests.timm_models import has_timm

FORMATS = frozenset(Format)
FLOAT_TOLERANCE = 1e-4  # of the output range


def _build(source: Path | str, feeds: NDArray[np.float32], name: str, folder: Path, **options: object) -> Report:
    from compiler.pipeline import build

    np.savez(folder / "calibration.npz", **{name: feeds})
    request = BuildRequest(
        str(source),
        folder / "out",
        calibration=str(folder / "calibration.npz"),
        precisions=(Precision.FP32, Precision.INT8),
    )
    return build(replace(request, **options))  # type: ignore[arg-type]


def _of(report: Report, precision: Precision) -> list[ArtifactReport]:
    found = [a for a in report.artifacts if a.precision == precision.value]
    assert {a.format for a in found} == {f.value for f in FORMATS}
    return found


def _assert_alike(report: Report) -> None:
    """Float artifacts compute the source; INT8 ones lie within two quantization steps of each other."""
    assert all(a.parity.relative_error <= FLOAT_TOLERANCE for a in _of(report, Precision.FP32))
    assert len(_of(report, Precision.INT8)) == len(report.agreement) == 3
    assert all(pair.share_within_two >= 0.99 for pair in report.agreement), report.agreement
    assert report.ok, [g.reason for a in report.artifacts for g in a.gates if not g.ok]


def test_keyword_spotting_keeps_its_accuracy_in_every_format(realdata: Path, tmp_path: Path) -> None:
    samples = np.load(realdata / "kws" / "samples.npz")
    features = (samples["features_int8"].astype(np.float32) - samples["zero_point"]) * samples["scale"]
    np.savez(tmp_path / "held_out.npz", input=features, labels=samples["labels"])
    report = _build(
        realdata / "kws" / "model.onnx",
        features[:100],
        "input",
        tmp_path,
        evaluate=str(tmp_path / "held_out.npz"),
        max_drop=1.0,
    )
    _assert_alike(report)
    floating = report.source_accuracy
    assert floating is not None and floating.value >= 0.90
    for artifact in _of(report, Precision.INT8):
        assert artifact.accuracy is not None and artifact.accuracy.total == 500
        assert artifact.accuracy.value >= floating.value - 0.01, artifact.path


def _natural(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Smooth noise in 0..1: neighbouring pixels are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((shape[0], *(max(1, d // 8) for d in shape[1:])))
    grown = coarse
    for axis, size in enumerate(shape[1:], 1):
        grown = np.repeat(grown, -(-size // grown.shape[axis]), axis=axis).take(np.arange(size), axis=axis)
    return np.clip(grown + rng.normal(0, 0.05, shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "name", "shape", "scale"),
    [("ic", "input", (32, 32, 32, 3), 255.0), ("vww", "input", (24, 96, 96, 3), 1.0), ("ad", "input", (64, 640), 1.0)],
)
def test_mlperf_tiny(
    realdata: Path, tmp_path: Path, model: str, name: str, shape: tuple[int, ...], scale: float
) -> None:
    _assert_alike(_build(realdata / model / "model.onnx", _natural(shape, 0) * np.float32(scale), name, tmp_path))


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("basic_pitch/nmp.onnx", None),
        ("dtln/model_1.onnx", None),
        ("dtln/model_2.onnx", None),
        ("ultraface/slim_320.onnx", None),
        ("magika/model.onnx", "magika/cases.npz"),
    ],
)
def test_real_float_models_keep_their_numbers_in_every_format(
    realdata: Path, tmp_path: Path, model: str, data: str | None
) -> None:
    from compiler.pipeline import build

    evaluate = None
    if data is not None:
        arrays = np.load(realdata / data)
        np.savez(tmp_path / "cases.npz", bytes=arrays["bytes"])
        evaluate = str(tmp_path / "cases.npz")
    report = build(
        BuildRequest(str(realdata / model), tmp_path / "out", precisions=(Precision.FP32,), evaluate=evaluate)
    )
    assert report.ok
    assert all(a.parity.relative_error <= FLOAT_TOLERANCE for a in _of(report, Precision.FP32))


@pytest.mark.skipif(not has_timm(), reason="timm is not installed")
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18"])
def test_common_architectures_from_pytorch(name: str, tmp_path: Path) -> None:
    import torch

    from tests.timm_models import create

    net = create(name, seed=1)
    example = torch.from_numpy(_natural((2, 3, 96, 96), 1))
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: batch},)), tmp_path / "net.pt2")
    report = _build(tmp_path / "net.pt2", _natural((16, 3, 96, 96), 2), _input_name(tmp_path / "net.pt2"), tmp_path)
    _assert_alike(report)


def _input_name(source: Path) -> str:
    import torch

    program = torch.export.load(source)
    return str(program.graph_signature.user_inputs[0])
