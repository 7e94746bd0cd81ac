"""`python -m benchmarks.quantization`: every quantizer on every model, as a Markdown table on stdout."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.quantization.engines import Engine, engines
from compiler.hub_session import open_hub
from compiler.importers import import_model
from compiler.importers.base import ImportOptions
from compiler.passes import clean_up
from compiler.verification.metrics import accuracy, flips, snr_db
from runtimes.session import Array, run_dataset

CALIBRATED = 256


@dataclass(frozen=True, slots=True)
class Case:
    """One model. ``classes``: how many of the first output's columns are class scores."""

    name: str
    hub: ir.Model
    calibration: Array
    samples: Array
    labels: Array
    classes: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__)
    parser.add_argument("--realdata", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "realdata")
    parser.add_argument("--nncf-python", type=Path, help="python of an environment with NNCF and onnx")
    parser.add_argument("--model", action="append", help="only these models")
    options = parser.parse_args()
    print("| model | quantizer | accuracy [95 %] | drop, points (p) | agreement | SQNR dB | bytes | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.realdata, Path(folder), options.model):
            plain = answers(case.hub, case.samples)[:, : case.classes]
            base = accuracy(plain, case.labels)
            size = len(ir.to_proto(case.hub).SerializeToString())
            print(
                f"| {case.name} | float32 | {_share(base.value, base.low, base.high)} | | | | {size:,} | |", flush=True
            )
            for name, engine in engines(options.nncf_python).items():
                print(row(case, name, engine, plain, Path(folder)), flush=True)
    return 0


def cases(realdata: Path, folder: Path, only: list[str] | None) -> Iterator[Case]:
    """The models, trained or read; missing real data leaves its model out."""
    from benchmarks.quantization.nets import NETS

    if (realdata / "kws").is_dir() and (not only or "kws" in only):
        yield kws(realdata / "kws")
    for name in NETS:
        if not only or name in only:
            yield trained_case(name, folder)


def kws(folder: Path) -> Case:
    """MLPerf Tiny keyword spotting: 256 samples calibrate, the other 244 judge."""
    data = np.load(folder / "samples.npz")
    features = ((data["features_int8"].astype(np.float32) - data["zero_point"]) * data["scale"]).astype(np.float32)
    hub = clean_up(import_model(str(folder / "model.onnx"), ImportOptions(batch=1)).model)
    order = np.random.default_rng(0).permutation(len(features))
    first, rest = order[:CALIBRATED], order[CALIBRATED:]
    return Case("kws (MLPerf Tiny)", hub, features[first], features[rest], data["labels"][rest], 12)


def trained_case(name: str, folder: Path) -> Case:
    import torch

    from benchmarks.quantization.nets import TRAINED, digits, trained

    images, labels = digits()
    net, path = trained(name, images, labels), folder / "net.onnx"
    torch.onnx.export(net, (torch.zeros(1, 1, 16, 16),), str(path), dynamo=False, opset_version=18, verbose=False)
    onnx.checker.check_model(onnx.load(path))
    hub = clean_up(import_model(str(path), ImportOptions(batch=1)).model)
    return Case(name, hub, images[:CALIBRATED], images[TRAINED:], labels[TRAINED:], 10)


def row(case: Case, name: str, engine: Engine, plain: Array, folder: Path) -> str:
    """One line; an engine that fails says so in its line instead of ending the run."""
    target = folder / "int8.onnx"
    target.unlink(missing_ok=True)
    start = time.perf_counter()
    try:
        engine(case.hub, case.calibration, target)
    except Exception as error:  # a peer may fail in any way; that is a result
        detail = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        last = (detail or type(error).__name__).strip().splitlines()[-1][:100]
        print(detail, file=sys.stderr)
        return f"| {case.name} | {name} | failed: {last} | | | | | |"
    seconds = time.perf_counter() - start
    found = answers(ir.load(target), case.samples)[:, : case.classes]
    right, paired = accuracy(found, case.labels), flips(found, plain, case.labels)
    same = float((found.argmax(1) == plain.argmax(1)).mean())
    noise = snr_db(plain.astype(np.float64), found.astype(np.float64) - plain)
    return (
        f"| {case.name} | {name} | {_share(right.value, right.low, right.high)} | {paired.drop_points:+.2f} ({paired.p_value:.2f})"
        f" | {same:.1%} | {noise:.1f} | {target.stat().st_size:,} | {seconds:.1f} |"
    )


def answers(model: ir.Model, samples: Array) -> Array:
    """The first output over all samples, [count, columns]."""
    with open_hub(model) as session:
        return run_dataset(session, {session.inputs[0].name: samples})[session.outputs[0].name]


def _share(value: float, low: float, high: float) -> str:
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"


if __name__ == "__main__":
    sys.exit(main())
