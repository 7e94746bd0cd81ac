"""The models, each with samples to calibrate on and others to be judged on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.quantization.data import CALIBRATED, smooth
from compiler.importers import import_model
from compiler.importers.base import ImportOptions
from compiler.passes import clean_up
from compiler.passes.serialize import to_bytes
from runtimes.session import Array


@dataclass(frozen=True, slots=True)
class Case:
    """One model.

    Args:
        calibration, samples: [count, ...] of the model's one input; no sample is in both.
        labels: [count], or None: then the float model's own answers stand for them.
        classes: how many of the first output's columns are class scores; 0 where nothing is classified.
        program: the net by torch.export, where it was trained here.
        hard: made so that INT8 loses it.
    """

    name: str
    hub: ir.Model
    calibration: Array
    samples: Array
    labels: Array | None
    classes: int
    program: Path | None = None
    hard: bool = False


def names() -> list[str]:
    from benchmarks.quantization.nets import NETS

    return ["kws", "mnist", "magika", "ic", "vww", "ad", *NETS]


def cases(realdata: Path, cache: Path, only: list[str] | None) -> Iterator[Case]:
    """The models, read or trained one after another; without real data only those on scikit-learn's digits."""
    from benchmarks.quantization.nets import NETS

    for name in names():
        if only and name not in only:
            continue
        if name not in NETS:
            if (realdata / name).is_dir():
                yield _REAL[name](realdata / name)
        elif NETS[name].data == "digits" or (realdata / "mnist").is_dir():
            yield _trained(name, realdata, cache)


def digest_of(case: Case) -> str:
    """Of the float model and all samples: results of two runs may stand in one table only if it is the same."""
    digest = hashlib.sha256(to_bytes(case.hub))
    for array in (case.calibration, case.samples):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _trained(name: str, realdata: Path, cache: Path) -> Case:
    from benchmarks.quantization.training import trained

    net = trained(name, realdata, cache)
    images, labels, first = net.data.images, net.data.labels, net.data.trained
    rest, truth = images[first:], labels[first:]
    return Case(name, _hub(net.onnx), images[:CALIBRATED], rest, truth, 10, net.program, net.hard)


def _kws(folder: Path) -> Case:
    """256 of the 500 samples calibrate, the other 244 judge."""
    data = np.load(folder / "samples.npz")
    features = ((data["features_int8"].astype(np.float32) - data["zero_point"]) * data["scale"]).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(features))
    first, rest = order[:CALIBRATED], order[CALIBRATED:]
    hub = _hub(folder / "model.onnx")
    return Case("kws (MLPerf Tiny)", hub, features[first], features[rest], data["labels"][rest], 12)


def _mnist(folder: Path) -> Case:
    data = np.load(folder / "t10k_first_half.npz")
    hub = _hub(folder / "conv_fc_float.tflite")
    shape = [int(d) for d in hub.graph.inputs[0].shape.numpy()[1:]]  # type: ignore[union-attr]
    pixels = data["images"].reshape(-1, *shape).astype(np.float32) / 255.0
    labels = data["labels"][CALIBRATED:].astype(np.int64)
    return Case("mnist (conv + fc)", hub, pixels[:CALIBRATED], pixels[CALIBRATED:], labels, 10)


def _magika(folder: Path) -> Case:
    """100 of the 200 golden cases calibrate, the others judge."""
    data = np.load(folder / "cases.npz")
    order = np.random.default_rng(0).permutation(len(data["label"]))
    first, rest = order[:100], order[100:]
    hub = _hub(folder / "model.onnx")
    return Case("magika", hub, data["bytes"][first], data["bytes"][rest], data["label"][rest], 214)


def _noise(title: str, shape: tuple[int, ...], low: float, high: float, classes: int, folder: Path) -> Case:
    samples = smooth(CALIBRATED + 256, shape, low, high, seed=0)
    return Case(title, _hub(folder / "model.onnx"), samples[:CALIBRATED], samples[CALIBRATED:], None, classes)


# Ranges of the models without samples: realdata/README.md for ic (raw 0..255) and vww (x / 255).
_REAL = {
    "kws": _kws,
    "mnist": _mnist,
    "magika": _magika,
    "ic": lambda folder: _noise("ic (ResNet-8)", (32, 32, 3), 0.0, 255.0, 10, folder),
    "vww": lambda folder: _noise("vww (MobileNetV1-0.25)", (96, 96, 3), 0.0, 1.0, 2, folder),
    "ad": lambda folder: _noise("ad (autoencoder)", (640,), -30.0, 20.0, 0, folder),
}


def _hub(path: Path) -> ir.Model:
    return clean_up(import_model(str(path), ImportOptions(batch=1)).model)
