"""The trained nets of ../shared/realdata in INT8, TFLite against onnxruntime on the same quantized hub, on samples kept back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import make_dataset
from compiler.exporters.base import ExportOptions
from compiler.exporters.tflite import EXPORTER
from compiler.hub_session import open_hub
from compiler.hubfacts import hub_inputs, output_scales
from compiler.importers import import_model
from compiler.importers.base import ImportOptions
from compiler.quantization.engine import quantize
from compiler.quantization.plan import QuantizeOptions
from profiles.schema import Precision
from runtimes.registry import open_session
from runtimes.session import Array, TensorSpec, run_dataset

REALDATA = Path(__file__).resolve().parents[2].parent / "shared" / "realdata"
NETS = {
    "kws": "kws/model.onnx",
    "ic": "ic/model.onnx",
    "vww": "vww/model.onnx",
    "ad": "ad/model.onnx",
    "dtln, magnitudes": "dtln/model_1.onnx",
    "dtln, samples": "dtln/model_2.onnx",
    "ultraface": "ultraface/slim_320.onnx",
    "magika": "magika/model.onnx",
    "basic-pitch": "basic_pitch/nmp.onnx",
}
CALIBRATED, COMPARED = 32, 16  # random samples; recorded ones are halved
HEADER = """| net | data | outputs in INT8 | equal | within one step | float outputs: largest difference |
|---|---|---|---|---|---|
"""


def table(realdata: Path) -> str:
    """Rows of Markdown, one per net."""
    return HEADER + "\n".join(rows(realdata)) + "\n"


def rows(realdata: Path) -> Iterator[str]:
    for name, path in NETS.items():
        yield f"| {name} | {_row(realdata, realdata / path)} |"


def _row(realdata: Path, source: Path) -> str:
    imported = import_model(str(source), ImportOptions())
    inputs = hub_inputs(imported.model)
    feeds, kind = _samples(realdata, source.parent.name, inputs)
    half = len(next(iter(feeds.values()))) * CALIBRATED // (CALIBRATED + COMPARED)
    data = make_dataset({name: array[:half] for name, array in feeds.items()}, inputs, where="benchmark")
    model = quantize(imported.model, data, QuantizeOptions()).model
    unseen = {name: array[half:] for name, array in feeds.items()}
    with open_hub(model) as session:
        want = run_dataset(session, unseen)
    with tempfile.TemporaryDirectory() as folder:
        made = EXPORTER.export(model, Path(folder) / "m.tflite", ExportOptions(Precision.INT8))
        with open_session(made.path) as session:
            got = run_dataset(session, unseen)
    return f"{kind} | {_compared(model, got, want)}"


def _compared(model: ir.Model, got: dict[str, Array], want: dict[str, Array]) -> str:
    scales = output_scales(model)
    floats = [name for name in want if name not in scales]
    apart = max((float(np.abs(got[n] - want[n]).max() / max(np.ptp(want[n]), 1e-12)) for n in floats), default=None)
    last = "" if apart is None else f"{apart:.1e} of the range"
    if not scales:
        return f"0 of {len(want)} | | | {last}"
    steps = np.concatenate([np.abs(got[n] - want[n]).ravel() / scale for n, scale in scales.items()])
    return f"{len(scales)} of {len(want)} | {(steps < 0.5).mean():.4f} | {(steps < 1.5).mean():.4f} | {last}"


def _samples(realdata: Path, folder: str, inputs: Sequence[TensorSpec]) -> tuple[dict[str, Array], str]:
    name = inputs[0].name
    if folder == "kws":
        kept = np.load(realdata / "kws" / "samples.npz")
        codes = kept["features_int8"][:150].astype(np.float32)
        return {name: ((codes - kept["zero_point"]) * kept["scale"]).astype(np.float32)}, "recorded"
    if folder == "magika":
        return {name: np.load(realdata / "magika" / "cases.npz")["bytes"]}, "recorded"
    if folder == "basic_pitch":
        return {name: np.load(realdata / "basic_pitch" / "windows.npz")["windows"]}, "recorded"
    rng = np.random.default_rng(0)
    count = CALIBRATED + COMPARED
    draw = rng.standard_normal if folder in ("ad", "dtln") else rng.random
    return {one.name: draw((count, *_sizes(one))).astype(np.float32) for one in inputs}, "random"


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size or 1 for size in spec.shape[1:])
