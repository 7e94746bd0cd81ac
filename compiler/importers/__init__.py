"""IMPORTERS: a source of any kind to the hub. ``import_model`` picks one by looking at the source."""

from __future__ import annotations

from compiler.errors import SourceError
from compiler.hub import Imported
from compiler.importers.base import Importer, ImportOptions
from profiles.registry import Registry

IMPORTERS: Registry[Importer] = Registry(
    "importer", how_to_add="Add a module with an IMPORTER in compiler/importers/ and one line in its __init__.py."
)
IMPORTERS.add_lazy("onnx", "compiler.importers.onnx_importer", "IMPORTER")
IMPORTERS.add_lazy("pytorch", "compiler.importers.pytorch_importer", "IMPORTER")
IMPORTERS.add_lazy("tflite", "compiler.importers.tflite.importer", "IMPORTER")
IMPORTERS.add_lazy("tensorflow", "compiler.importers.tensorflow_importer", "IMPORTER")

ACCEPTED = (
    "model.onnx, model.pt2, model.pt, module:factory, file.py:factory, model.keras, model.h5, a SavedModel folder, "
    "model.tflite"
)


def import_model(source: str, options: ImportOptions | None = None) -> Imported:
    """Bring ``source`` into the hub with the importer that recognises it.

    Raises:
        SourceError: nothing recognises the source, or it is missing, damaged or needs more options.
        UnsupportedModel: it holds what the hub cannot express; all of it is listed.
        ExtraMissing, RuntimeMissing: a package that this kind of source needs is not installed.
    """
    for name in IMPORTERS:
        importer = IMPORTERS.get(name)
        if importer.recognises(source):
            return importer.load(source, options or ImportOptions())
    raise SourceError(f"{source!r} is no kind of model that is known here.", remedy=f"Give one of: {ACCEPTED}.")
