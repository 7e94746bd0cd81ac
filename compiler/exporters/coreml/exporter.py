"""EXPORTER: the Core ML exporter as the registry sees it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.decompose import settle
from compiler.errors import Refusal, UnsupportedModel
from compiler.exporters.base import Exporter, ExportOptions, ExportResult
from compiler.exporters.coreml.build import Built, build
from compiler.exporters.coreml.flexible import at_ends
from compiler.exporters.coreml.package import write_package
from compiler.exporters.coreml.unsupported import Unsupported
from compiler.passes.carried import keep_carried_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

log = logging.getLogger(__name__)


class CoreMLExporter:
    """Writes ML programs (iOS15 and later) as .mlpackage folders.

    float32 computes in float32. float16 stores and computes in float16 with float32 inputs and outputs; an operator
    with a constant beyond float16's range stays in float32 and is named in the notes. int8 stores int8 weights and
    quantizes activations with the hub's own scales and zero points. Where weights alone are compressed, computation is in float32,
    or with the option ``half`` in float16.
    """

    format = "coreml"
    suffix = ".mlpackage"

    def check(self, model: ir.Model, options: ExportOptions) -> list[Refusal]:
        """Lowers the whole model in memory: what it lists is what ``export`` would raise.

        Raises:
            UnknownTarget: the deployment target is not known.
            ExtraMissing: coremltools is not installed.
        """
        return list(_settled(model, options).refusals)

    def export(self, model: ir.Model, destination: Path, options: ExportOptions) -> ExportResult:
        """Write the package.

        Raises:
            UnsupportedModel: with all refusals; nothing is written.
            UnknownTarget: the deployment target is not known.
            ExtraMissing: coremltools is not installed.
            StorageError: the disk is full or refuses; what was at ``destination`` is as it was.
        """
        built = _settled(model, options)
        if built.refusals:
            raise UnsupportedModel(built.refusals)
        write_package(built, destination, options.metadata)
        log.info("wrote %s for %s", destination, built.target.name)
        return ExportResult(destination, built.notes)


def _settled(model: ir.Model, options: ExportOptions) -> Built:
    flexible = options.interface.flexible
    if not flexible:
        return settle(keep_carried_shapes(model), lambda attempt: build(attempt, options))

    try:
        at_ends(model, flexible)
    except Unsupported:  # sizes that do not fit the model: the build says so
        return build(model, options)
    return settle(model, lambda attempt: build(attempt, options), lambda attempt: at_ends(attempt, flexible))


EXPORTER: Exporter = CoreMLExporter()
