"""The quantizers: each takes a float hub and calibration samples and writes an int8 ONNX file."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.hubfacts import hub_inputs
from compiler.passes.serialize import to_bytes
from compiler.quantization.engine import quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.ladder import Goals, climb
from runtimes.session import Array

Engine = Callable[[ir.Model, Array, Path], None]  # hub, samples, file to write


def dataset_of(hub: ir.Model, samples: Array) -> Dataset:
    inputs = hub_inputs(hub)
    return make_dataset({inputs[0].name: samples}, inputs, where="benchmark")


def ours_normal(hub: ir.Model, samples: Array, target: Path) -> None:
    target.write_bytes(to_bytes(quantize(hub, dataset_of(hub, samples)).model))


def ours_high(hub: ir.Model, samples: Array, target: Path) -> None:
    found = climb(hub, dataset_of(hub, samples), QuantizeOptions(), Goals(climb_all=True))
    target.write_bytes(to_bytes(found.best.model))


def onnxruntime_static(hub: ir.Model, samples: Array, target: Path) -> None:
    """quantize_static in QDQ form, int8 per channel, its default min-max calibration."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    source = target.with_suffix(".float.onnx")
    onnx.save(ir.to_proto(hub), source)
    quantize_static(
        source,
        target,
        _reader(hub, samples),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def _reader(hub: ir.Model, samples: Array) -> object:
    from onnxruntime.quantization import CalibrationDataReader

    name = str(hub.graph.inputs[0].name)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows: Iterator[Array] = iter(samples)

        def get_next(self) -> dict[str, Array] | None:
            row = next(self._rows, None)
            return None if row is None else {name: row[np.newaxis]}

    return Reader()


NNCF_SCRIPT = """
import sys, nncf, numpy as np, onnx
source, data, name, fast, target = sys.argv[1:]
rows = np.load(data)["samples"]
calibration = nncf.Dataset(list(rows), lambda row: {name: row[None]})
model = nncf.quantize(
    onnx.load(source), calibration, subset_size=len(rows), fast_bias_correction=fast == "1",
    preset=nncf.QuantizationPreset.MIXED)
onnx.save(model, target)
"""


def nncf_engine(python: Path, *, fast: bool) -> Engine:
    """NNCF in the environment of ``python``, with fast or full bias correction."""

    def run(hub: ir.Model, samples: Array, target: Path) -> None:
        source, data = target.with_suffix(".float.onnx"), target.with_suffix(".npz")
        onnx.save(ir.to_proto(hub), source)
        np.savez(data, samples=samples)
        name = str(hub.graph.inputs[0].name)
        command = [str(python), "-c", NNCF_SCRIPT, str(source), str(data), name, str(int(fast)), str(target)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)

    return run


def engines(nncf_python: Path | None) -> dict[str, Engine]:
    """By the name in the table."""
    found: dict[str, Engine] = {
        "edgewright": ours_normal,
        "edgewright --effort high": ours_high,
        "onnxruntime static": onnxruntime_static,
    }
    if nncf_python is not None:
        found["NNCF, fast bias correction"] = nncf_engine(nncf_python, fast=True)
        found["NNCF, full bias correction"] = nncf_engine(nncf_python, fast=False)
    return found
