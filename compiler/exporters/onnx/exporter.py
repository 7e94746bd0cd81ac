"""Writes .onnx files in every precision."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from compiler.errors import Refusal, UnsupportedModel
from compiler.exporters.base import ExportOptions, ExportResult
from compiler.exporters.onnx.batch import free_batch
from compiler.exporters.onnx.dynamic import to_dynamic
from compiler.exporters.onnx.half import to_float16
from compiler.passes.serialize import from_bytes, to_bytes
from compiler.quantization.unsigned import to_uint8
from profiles.schema import Precision
from runtimes.artifact.files import write_atomic


class OnnxExporter:
    """See compiler.exporters.base.Exporter.

    INT8 activations are written as uint8 with zero point + 128: the same numbers. With int8 activations onnxruntime on x86
    rewrites the pairs by itself unless a session option forbids it, and then quietly runs some convolutions in float (6 of 9 in
    the ic model); with uint8 its integer kernels stay engaged.
    """

    format = "onnx"
    suffix = ".onnx"

    def check(self, model: ir.Model, options: ExportOptions) -> list[Refusal]:
        """Everything in ONNX's own operator set can be written; a node of another domain is refused."""
        return [
            Refusal(
                str(node.name),
                f"{node.domain}.{node.op_type}",
                "custom domains have no kernels in a standard runtime",
                self.format,
                "Express it in standard operators.",
            )
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if node.domain not in ("", "ai.onnx")
        ]

    def export(self, model: ir.Model, destination: Path, options: ExportOptions) -> ExportResult:
        """Raises UnsupportedModel, StorageError."""
        refusals = self.check(model, options)
        if refusals:
            raise UnsupportedModel(refusals)
        notes: tuple[str, ...] = ()
        if options.rebatch is not None:
            model, refusals = free_batch(*options.rebatch.twins(model))
            if refusals:
                raise UnsupportedModel(refusals)
        if options.precision is Precision.FP16:
            model, notes = to_float16(model)
        elif options.precision is Precision.INT8:
            model, notes = to_uint8(model), ("activations are uint8: the int8 numbers moved by 128",)
        elif options.precision is Precision.INT8_DYNAMIC:
            model, count = to_dynamic(model)
            notes = (f"{count} products quantize their inputs as they come; convolutions keep float inputs",)
        else:
            model = from_bytes(to_bytes(model))
        model.metadata_props.update(sorted(options.metadata.items()))
        data = to_bytes(model)
        onnx.checker.check_model(data, full_check=False)
        write_atomic(destination, data)
        return ExportResult(destination, notes)


EXPORTER = OnnxExporter()
