"""onnxruntime's own calibration as an alternative engine: its ranges, our rules, weights and writing of the hub.

So its results can be compared with the built-in engine's in one table, and lowered to every target. Its calibrators keep all tapped
activations of the data in memory (min-max) or histograms that grow with the range (percentile, entropy); ours stream.
Source: onnxruntime.quantization.calibrate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from compiler.calibration.collect import Calibration, Progress
from compiler.calibration.dataset import Dataset
from compiler.calibration.observers import Range
from compiler.errors import DataError
from compiler.passes.serialize import to_bytes
from compiler.quantization import engine
from compiler.quantization.perform import perform
from compiler.quantization.plan import QuantizeOptions, plan
from compiler.quantization.structure import analyse

METHODS: Final = {"min-max": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
DEFAULT: Final = "min-max"  # what quantize_static takes


def quantize(
    model: ir.Model, dataset: Dataset, options: QuantizeOptions | None = None, progress: Progress | None = None
) -> engine.Quantized:
    """Ranges by the method that ``options.observer`` names in METHODS; the built-in default stands for DEFAULT.

    Raises:
        DataError: onnxruntime has no such method, an activation became NaN or infinite, or unknown nodes are named.
    """
    options = options or QuantizeOptions()
    name = DEFAULT if options.observer == QuantizeOptions().observer else options.observer
    if name not in METHODS:
        raise DataError(
            f"onnxruntime calibrates by {', '.join(METHODS)}, not {name}.", remedy="Choose one of these as --observer."
        )
    wanted = analyse(model, options.keep_float, options.activations).activations
    ranges = _ranges(model, dataset, METHODS[name], wanted)
    calibration = Calibration(ranges, f"onnxruntime {name}", dataset.count, dataset.digest)
    spec = plan(model, calibration, options)
    return engine.Quantized(perform(model, spec), spec, calibration)


class _Reader:
    """What onnxruntime calls a CalibrationDataReader."""

    def __init__(self, dataset: Dataset) -> None:
        self._batches: Iterator[dict[str, Any]] = dataset.batches()

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def _ranges(model: ir.Model, dataset: Dataset, method: str, wanted: list[str]) -> dict[str, Range]:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    with tempfile.TemporaryDirectory(prefix="edgewright-ort-") as folder:
        path = Path(folder) / "hub.onnx"
        path.write_bytes(to_bytes(model))
        calibrator = create_calibrator(
            path,
            op_types_to_calibrate=None,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[method],
        )
        calibrator.collect_data(_Reader(dataset))
        found = calibrator.compute_data()
    ranges = {}
    for name in wanted:
        if name not in found:
            raise DataError(f"onnxruntime observed no {name!r}.", remedy="Use --quantizer edgewright.")
        low, high = (float(np.min(part)) for part in found[name].range_value)
        if not np.isfinite([low, high]).all():
            raise DataError(
                f"Value {name!r} became NaN or infinite during calibration.",
                remedy="Check the samples and the weights.",
            )
        ranges[name] = Range(min(low, 0.0), max(high, 0.0), low, high)
    return ranges
