"""The matrix that the Core ML pages measure: real models with data of their kind, and timm's nets with seeded random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.architectures import NETS, SIZES
from runtimes.session import Array

REALDATA = Path(__file__).resolve().parents[3] / "shared" / "realdata"
CALIBRATION, UNSEEN = 32, 8  # samples of a real model
PICTURES = (8, 4)  # of a timm net


@dataclass(frozen=True)
class Case:
    """``hub`` in canonical form; ``calibration`` and ``unseen``: feeds with samples on axis 0; ``truth``: the source on unseen."""

    name: str
    hub: ir.Model
    calibration: dict[str, Array]
    unseen: dict[str, Array]
    truth: dict[str, Array]


def case(name: str, folder: Path) -> Case:
    """A real model by its name in REAL, or a net of timm. ``folder``: for what PyTorch writes on the way."""
    from benchmarks.coreml.speed import imported_net
    from compiler.hubfacts import hub_inputs
    from compiler.importers import import_model
    from compiler.passes import clean_up
    from runtimes.session import run_dataset

    if name in REAL:
        source, sample = REAL[name]
        imported: Any = import_model(str(REALDATA / source))
        hub = clean_up(imported.model)
        count, unseen = CALIBRATION, UNSEEN
        every = {spec.name: sample((count + unseen, *(d or 1 for d in spec.shape[1:]))) for spec in hub_inputs(hub)}
    else:
        size = SIZES.get(name, 224 if "224" in name else 128)
        imported = imported_net(name, size, folder)
        hub = clean_up(imported.model)
        count, unseen = PICTURES
        every = {str(hub.graph.inputs[0].name): _uniform(0, 1)((count + unseen, 3, size, size))}
    rest = {key: array[count:] for key, array in every.items()}
    return Case(name, hub, {k: a[:count] for k, a in every.items()}, rest, run_dataset(imported.reference, rest, 1))


Sample = Callable[[tuple[int, ...]], Array]


def _uniform(low: float, high: float) -> Sample:
    return lambda shape: np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def _speech(shape: tuple[int, ...]) -> Array:
    samples = np.load(REALDATA / "kws" / "samples.npz")
    codes = samples["features_int8"][: shape[0]].astype(np.float32)
    return np.asarray(((codes - samples["zero_point"]) * samples["scale"]).astype(np.float32).reshape(shape))


def _digits(shape: tuple[int, ...]) -> Array:
    stored = np.load(REALDATA / "mnist" / "t10k_first_half.npz")
    pictures = next(stored[key] for key in stored.files if stored[key].ndim > 2)
    return np.asarray(pictures[: shape[0]].reshape(shape).astype(np.float32) / 255)


def _music(shape: tuple[int, ...]) -> Array:
    windows = np.load(REALDATA / "basic_pitch" / "windows.npz")["windows"]
    return np.asarray(np.resize(windows, (max(shape[0], len(windows)), *windows.shape[1:]))[: shape[0]].reshape(shape))


def _files(shape: tuple[int, ...]) -> Array:
    return np.asarray(np.load(REALDATA / "magika" / "cases.npz")["bytes"][: shape[0]].astype(np.int32).reshape(shape))


# Ranges of those without samples: shared/realdata/README.md.
REAL: dict[str, tuple[str, Sample]] = {
    "kws": ("kws/model.onnx", _speech),
    "ic": ("ic/model.onnx", _uniform(0, 255)),
    "vww": ("vww/model.onnx", _uniform(0, 1)),
    "ad": ("ad/model.onnx", _uniform(-30, 20)),
    "mnist": ("mnist/conv_fc_float.tflite", _digits),
    "ultraface": ("ultraface/slim_320.onnx", _uniform(-1, 1)),
    "dtln_1": ("dtln/model_1.onnx", _uniform(0, 1)),
    "dtln_2": ("dtln/model_2.onnx", _uniform(-1, 1)),
    "magika": ("magika/model.onnx", _files),
    "basic_pitch": ("basic_pitch/nmp.onnx", _music),
}
EVERY = (*REAL, *NETS)
