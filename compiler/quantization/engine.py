"""Calibrate, plan, perform: the whole of int8 quantization as one function, and the registry of engines that offer it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from compiler.calibration.collect import Calibration, Progress, collect
from compiler.calibration.dataset import Dataset
from compiler.quantization.perform import perform
from compiler.quantization.plan import QuantizeOptions, plan
from compiler.quantization.spec import QuantizationSpec
from compiler.quantization.structure import analyse
from profiles.registry import Registry

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Quantized:
    """``model``: the quantized hub (compiler/hub.py). ``spec``: every decision in it."""

    model: ir.Model
    spec: QuantizationSpec
    calibration: Calibration


class Quantizer(Protocol):
    """Turns a float hub into a quantized hub that follows compiler/hub.py, with a spec that holds the same numbers.

    The float model must not be modified, and the same arguments must give the same spec.
    """

    def __call__(
        self, model: ir.Model, dataset: Dataset, options: QuantizeOptions, progress: Progress | None = None
    ) -> Quantized:
        """Raises DataError, UnsupportedModel, ExtraMissing."""
        ...


QUANTIZERS: Registry[Quantizer] = Registry(
    "quantizer", how_to_add="Add a function that follows Quantizer and one line in compiler/quantization/engine.py."
)
QUANTIZERS.add_lazy("edgewright", "compiler.quantization.engine", "quantize")
QUANTIZERS.add_lazy("onnxruntime", "compiler.quantization.onnxruntime_engine", "quantize")
QUANTIZERS.add_lazy("neural-compressor", "compiler.quantization.neural_compressor", "quantize")


def quantize(
    model: ir.Model, dataset: Dataset, options: QuantizeOptions | None = None, progress: Progress | None = None
) -> Quantized:
    """Quantize a float hub to int8 weights, with int8 or int16 activations.

    Args:
        model: a float hub; it is not modified.
        dataset: calibration samples.
        options: how; the defaults suit convolutional nets.
        progress: called after every calibration run.

    Raises:
        DataError: an activation became NaN or infinite.
        RegistryMiss: the options name an unknown observer.
        DataError: the options name unknown nodes.
    """
    options = options or QuantizeOptions()
    wanted = analyse(model, options.keep_float, options.activations).activations
    calibration = collect(model, dataset, observer=options.observer, values=frozenset(wanted), progress=progress)
    spec = plan(model, calibration, options)
    LOGGER.info("%d of %d nodes in int8", len(spec.nodes) - len(spec.float_nodes), len(spec.nodes))
    for note in spec.notes:
        LOGGER.warning("%s", note)
    return Quantized(perform(model, spec), spec, calibration)
