"""IMPORTERS: a source of any kind to the hub. ``import_model`` picks one by looking at the source."""

from __future__ import annotations

from compiler.importers.base import Importer
from profiles.registry import Registry

IMPORTERS: Registry[Importer] = Registry(
    "importer", how_to_add="Add a module with an IMPORTER in compiler/importers/ and one line in its __init__.py."
)
IMPORTERS.add_lazy("onnx", "compiler.importers.onnx_importer", "IMPORTER")
IMPORTERS.add_lazy("pytorch", "compiler.importers.pytorch_importer", "IMPORTER")
IMPORTERS.add_lazy("tensorflow", "compiler.importers.tensorflow_importer", "IMPORTER")
