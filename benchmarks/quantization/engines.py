"""The quantizers: each takes a case and a folder and leaves an INT8 artifact there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.quantization.cases import Case
from compiler.calibration.dataset import Dataset, make_dataset
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hubfacts import hub_inputs
from compiler.quantization.engine import QUANTIZERS
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.collapse import quantize_or_rescue
from compiler.quantization.rescue.ladder import Goals, climb
from profiles.schema import Precision
from runtimes.session import Array


@dataclass(frozen=True, slots=True)
class Made:
    """``artifact``: what would be shipped. ``answers``: [samples, columns] where the quantizer ran it itself, else None.
    ``seconds``: of quantizing alone, without imports and process start."""

    artifact: Path
    seconds: float
    answers: Array | None = None


Engine = Callable[[Case, Path], Made]


def dataset_of(case: Case) -> Dataset:
    inputs = hub_inputs(case.hub)
    return make_dataset({inputs[0].name: case.calibration}, inputs, where="benchmark")


def ours_normal(case: Case, folder: Path) -> Made:
    """What a build does that asks for nothing: plain INT8, and the cheap rungs where it collapses."""
    data, start = dataset_of(case), time.perf_counter()
    model = quantize_or_rescue(case.hub, data, QuantizeOptions()).quantized.model
    return _exported(model, folder, time.perf_counter() - start)


def ours_high(case: Case, folder: Path) -> Made:
    """What ``--effort high`` does."""
    return _climbed(case, folder, Goals(climb_all=True))


def ours_gated(case: Case, folder: Path) -> Made:
    """What ``--effort high --max-drop 1`` does: more nodes may stay in float to keep 99 % of the answers."""
    return _climbed(case, folder, Goals(min_agreement=0.99, climb_all=True))


def _climbed(case: Case, folder: Path, goals: Goals) -> Made:
    data, start = dataset_of(case), time.perf_counter()
    model = climb(case.hub, data, QuantizeOptions(), goals).best.model
    return _exported(model, folder, time.perf_counter() - start)


def seam(name: str) -> Engine:
    """``--quantizer NAME``."""

    def run(case: Case, folder: Path) -> Made:
        data, start = dataset_of(case), time.perf_counter()
        model = QUANTIZERS.get(name)(case.hub, data, QuantizeOptions()).model
        return _exported(model, folder, time.perf_counter() - start)

    return run


def _exported(model: ir.Model, folder: Path, seconds: float) -> Made:
    made = EXPORTERS.get("onnx").export(model, folder / "int8.onnx", ExportOptions(Precision.INT8))
    return Made(made.path, seconds)


def onnxruntime_static(case: Case, folder: Path) -> Made:
    """quantize_static as its documentation advises for CPUs: quant_pre_process, QDQ, per channel, min-max."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared, target = (folder / name for name in ("float.onnx", "prepared.onnx", "int8.onnx"))
    onnx.save(ir.to_proto(case.hub), source)
    start = time.perf_counter()
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        _reader(case),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return Made(target, time.perf_counter() - start)


def _reader(case: Case) -> object:
    from onnxruntime.quantization import CalibrationDataReader

    name = str(case.hub.graph.inputs[0].name)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows: Iterator[Array] = iter(case.calibration)

        def get_next(self) -> dict[str, Array] | None:
            row = next(self._rows, None)
            return None if row is None else {name: row[np.newaxis]}

    return Reader()


OURS = "edgewright"  # what a build does that asks for nothing
BUILT_IN: dict[str, Engine] = {
    OURS: ours_normal,
    "edgewright --effort high": ours_high,
    "edgewright --effort high --max-drop 1": ours_gated,
    "edgewright --quantizer onnxruntime": seam("onnxruntime"),
    "onnxruntime static": onnxruntime_static,
}


HARD_ONLY = ("edgewright --effort high --max-drop 1",)  # on the others it does what --effort high does


def is_ours(name: str) -> bool:
    return name.startswith("edgewright")
