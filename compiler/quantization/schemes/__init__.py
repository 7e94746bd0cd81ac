"""The integer precisions beside INT8, each a function from a float hub to a quantized hub (compiler/hub.py says of what form)."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from compiler.calibration.dataset import Dataset
from compiler.quantization.engine import Quantized
from compiler.quantization.plan import QuantizeOptions
from profiles.registry import Registry
from profiles.schema import Precision

Scheme = Callable[[ir.Model, Dataset | None, QuantizeOptions], Quantized]

SCHEMES: Registry[Scheme] = Registry(
    "integer precision",
    how_to_add="Add a function that follows Scheme and one line in compiler/quantization/schemes/__init__.py.",
)
SCHEMES.add_lazy(Precision.INT16X8.value, "compiler.quantization.schemes.sixteen", "int16x8")
SCHEMES.add_lazy(Precision.INT8_WEIGHTS.value, "compiler.quantization.schemes.weights", "int8_weights")
SCHEMES.add_lazy(Precision.INT8_DYNAMIC.value, "compiler.quantization.schemes.weights", "int8_weights")
SCHEMES.add_lazy(Precision.INT4_WEIGHTS.value, "compiler.quantization.schemes.weights", "int4_weights")
for _precision in Precision:
    if _precision.palette_bits is not None:
        SCHEMES.add_lazy(_precision.value, "compiler.quantization.schemes.compressed", _precision.name.lower())
SCHEMES.add_lazy(Precision.SPARSE.value, "compiler.quantization.schemes.compressed", "sparse")
SCHEMES.add_lazy(Precision.SPARSE_INT8.value, "compiler.quantization.schemes.compressed", "sparse_int8")


def quantize_as(
    model: ir.Model, dataset: Dataset | None, precision: Precision, options: QuantizeOptions | None = None
) -> Quantized:
    """Quantize a float hub, which is not modified.

    Args:
        dataset: calibration samples; precisions that quantize weights only do without.

    Raises:
        RegistryMiss: no scheme of that name (INT8 has a pipeline of its own, compiler/quantization/engine.py).
        DataError: the scheme needs samples and there are none, or they gave NaN or infinity.
    """
    return SCHEMES.get(precision.value)(model, dataset, options or QuantizeOptions())
