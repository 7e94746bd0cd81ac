"""`python -m benchmarks.coreml compression`: what each way of compressing weights saves and costs, on keyword spotting.

Every precision is built from the same float model; accuracy is of the Core ML package in the reference evaluator, on the labelled
samples of ../shared/realdata/kws: 200 calibrate, the other 300 are judged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[3] / "shared" / "realdata" / "kws"
SAMPLES, CALIBRATION = 500, 200


def main(names: Sequence[str]) -> int:
    """One line per precision; 2 where the data is missing."""
    from compiler.calibration.dataset import make_dataset
    from compiler.hubfacts import hub_inputs
    from compiler.importers import import_model
    from compiler.importers.base import ImportOptions
    from compiler.passes import clean_up
    from profiles.schema import Precision

    if not DATA.is_dir():
        print(f"{DATA} is missing: this benchmark needs its model and samples.")
        return 2
    hub = clean_up(import_model(str(DATA / "model.onnx"), ImportOptions()).model)
    feeds, labels = _samples(hub)
    data = make_dataset({name: array[:CALIBRATION] for name, array in feeds.items()}, hub_inputs(hub), where="kws")
    feeds, labels = {name: array[CALIBRATION:] for name, array in feeds.items()}, labels[CALIBRATION:]
    chosen = [Precision(n) for n in names] or [p for p in Precision if p.is_float or p.weights_only]
    columns = ("precision", "package KiB", "weights KiB", "without data dB", "accuracy", "with data dB", "accuracy")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    with tempfile.TemporaryDirectory() as folder:
        for precision in chosen:
            cells = [_cells(precision, hub, given, feeds, labels, Path(folder)) for given in (None, data)]
            print(f"| {precision.value} | {cells[0][0]} | {cells[0][1]} | {cells[1][1]} |", flush=True)
    return 0


def _samples(hub: Any) -> tuple[dict[str, Any], Any]:
    with np.load(DATA / "samples.npz") as file:
        codes = next(file[n] for n in file.files if file[n].ndim > 1)
        labels = next(
            file[n] for n in file.files if file[n].ndim == 1 and file[n].dtype.kind in "iu" and file[n].size > 1
        )
        scale, zero = (float(file[n]) for n in ("scale", "zero_point"))
    x = ((codes[:SAMPLES].astype(np.float32) - zero) * scale).astype(np.float32)
    value = hub.graph.inputs[0]
    return {value.name: x.reshape(len(x), *[int(d) for d in value.shape][1:])}, labels[:SAMPLES]


def _cells(precision: Any, hub: Any, data: Any, feeds: dict[str, Any], labels: Any, folder: Path) -> tuple[str, str]:
    """Sizes, and noise and accuracy, as columns of the table."""
    from compiler.exporters import EXPORTERS
    from compiler.exporters.base import ExportOptions
    from compiler.hub_session import open_hub
    from compiler.quantization.compression import PALETTE_GROUP, Compression
    from compiler.quantization.plan import QuantizeOptions
    from compiler.quantization.schemes import quantize_as
    from compiler.verification.metrics import accuracy, snr_db
    from runtimes.artifact.files import size_tree
    from runtimes.coreml_reference.session import open_package
    from runtimes.session import run_dataset

    options = QuantizeOptions(compression=Compression(palette_group=PALETTE_GROUP))
    model = hub if precision.is_float else quantize_as(hub, data, precision, options).model
    path = folder / f"{precision.value}.mlpackage"
    EXPORTERS.get("coreml").export(model, path, ExportOptions(precision, "iOS18"))
    with open_package(path) as session, open_hub(hub) as source:
        got = next(iter(run_dataset(session, feeds).values()))
        want = next(iter(run_dataset(source, feeds, 1).values()))
    weights = (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    found = accuracy(got, labels)
    db = snr_db(want.astype(np.float64), got.astype(np.float64) - want)
    return f"{size_tree(path) / 1024:.1f} | {weights / 1024:.1f}", f"{db:.1f} | {found.value:.1%}"
