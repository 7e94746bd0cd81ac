"""Writes .onnx: the float hub as it is or in float16, or the quantized hub in QDQ form."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from compiler.errors import Refusal, UnsupportedModel
from compiler.exporters.base import ExportOptions, ExportResult
from compiler.exporters.onnx.float16 import to_float16
from compiler.exporters.onnx.uint8 import to_uint8
from compiler.hub import HUB_OPSET
from compiler.passes.serialize import from_bytes, to_bytes
from profiles.schema import Precision
from runtimes.artifact.files import write_atomic


class OnnxExporter:
    """Entry of EXPORTERS; see ``Exporter``.

    Args:
        activation_dtype: of quantized activations, "int8" as the hub has them, or "uint8" with zero point + 128:
            the same numbers, which onnxruntime on x86 runs 1.6 to 2.9 times faster.
    """

    format = "onnx"
    suffix = ".onnx"

    def __init__(self, activation_dtype: str = "int8") -> None:
        if activation_dtype not in ("int8", "uint8"):
            raise ValueError(f"activation_dtype is {activation_dtype!r}, not int8 or uint8")
        self._activation_dtype = activation_dtype

    def check(self, model: ir.Model, options: ExportOptions) -> list[Refusal]:
        """Opset and onnx.checker; the hub is ONNX, so only a broken hub is refused."""
        opset = model.opset_imports.get("")
        if opset != HUB_OPSET:
            return [Refusal("", "model", f"it is at opset {opset}, not {HUB_OPSET}", self.format)]
        try:
            onnx.checker.check_model(onnx.load_model_from_string(to_bytes(model)), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            return [Refusal("", "model", str(error).strip().splitlines()[0], self.format)]
        return []

    def export(self, model: ir.Model, destination: Path, options: ExportOptions) -> ExportResult:
        """Raises UnsupportedModel, StorageError; ``destination`` is then as it was."""
        refusals = self.check(model, options)
        if refusals:
            raise UnsupportedModel(refusals)
        copy = from_bytes(to_bytes(model))
        notes: tuple[str, ...] = ()
        if options.precision is Precision.FP16:
            notes = to_float16(copy)
        elif options.precision is Precision.INT8 and self._activation_dtype == "uint8":
            notes = to_uint8(copy)
        copy.metadata_props.clear()
        copy.metadata_props.update(sorted(options.metadata.items()))
        write_atomic(destination, to_bytes(copy))
        return ExportResult(destination, notes)


EXPORTER = OnnxExporter()
