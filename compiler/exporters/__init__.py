"""EXPORTERS: hub model to artifact, one package per format."""

from __future__ import annotations

from compiler.exporters.base import Exporter
from profiles.registry import Registry

EXPORTERS: Registry[Exporter] = Registry(
    "exporter", how_to_add="Add a package with an EXPORTER in compiler/exporters/ and one line in its __init__.py."
)
EXPORTERS.add_lazy("onnx", "compiler.exporters.onnx", "EXPORTER")
EXPORTERS.add_lazy("tflite", "compiler.exporters.tflite", "EXPORTER")
EXPORTERS.add_lazy("coreml", "compiler.exporters.coreml", "EXPORTER")
