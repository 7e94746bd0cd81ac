"""Writes a program as a .mlpackage folder: the same program, the same bytes.

    Manifest.json                               which item is the model; its identifiers derive from the contents
    Data/com.apple.CoreML/model.mlmodel         the specification, serialized with ordered maps
    Data/com.apple.CoreML/weights/weight.bin    constants of ten elements and more, in the order of the program

Source: coremltools' ModelPackage (manifest format 1.0.0), whose own writer draws random identifiers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.exporters.coreml.build import Built
from compiler.exporters.coreml.interface import Classifier, describe_inputs
from compiler.exporters.coreml.target import fresh_builder_names
from runtimes.artifact.files import storage_error, sync_dir

AUTHOR = "com.apple.CoreML"
MODEL_NAME, WEIGHTS_DIR, WEIGHTS_NAME = "model.mlmodel", "weights", "weight.bin"
# Namespace of identifiers derived from content (RFC 4122 version 5); drawn once for this exporter.
NAMESPACE = uuid.UUID("5d5dd4a0-3f4e-5e0c-9c1c-6e6f2c0b7a11")


def write_package(built: Built, destination: Path, metadata: Mapping[str, str]) -> None:
    """Write beside ``destination``, then put it in place; a package that was there goes only after that succeeded.

    Raises:
        StorageError: the disk is full or refuses; what was at ``destination`` is as it was.
    """
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _write_folder(built, temporary, metadata)
        _replace(temporary, destination)
    except OSError as error:
        raise storage_error(destination, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_folder(built: Built, folder: Path, metadata: Mapping[str, str]) -> None:
    from coremltools.converters.mil.backend.mil.load import load

    items = folder / "Data" / AUTHOR
    weights = items / WEIGHTS_DIR
    weights.mkdir(parents=True)
    with fresh_builder_names():
        specification = load(
            built.program,
            str(weights),
            specification_version=built.target.spec_version,
            classifier_config=_classifier_config(built.classifier),
        )
    _describe(specification, built, metadata)
    model = specification.SerializeToString(deterministic=True)
    (items / MODEL_NAME).write_bytes(model)
    weight_file = weights / WEIGHTS_NAME
    digest = hashlib.sha256(weight_file.read_bytes()).hexdigest() if weight_file.exists() else ""
    (folder / "Manifest.json").write_bytes(_manifest(hashlib.sha256(model).hexdigest(), digest))
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _classifier_config(classifier: Classifier | None) -> Any:
    if classifier is None:
        return None
    import coremltools

    return coremltools.ClassifierConfig(list(classifier.classes), classifier.label, classifier.scores)


def _describe(specification: Any, built: Built, metadata: Mapping[str, str]) -> None:
    """Author, version and the like to their fields, the rest and the name maps to the user-defined metadata."""
    target = specification.description.metadata
    fields = {
        "author": "author",
        "version": "versionString",
        "description": "shortDescription",
        "short_description": "shortDescription",
        "license": "license",
        "licence": "license",
    }
    for key, value in sorted(metadata.items()):
        if key in fields:
            setattr(target, fields[key], value)
        else:
            target.userDefined[key] = value
    describe_inputs(specification, built.pictures, built.flexible, built.defaults)
    renamed = {built.classifier.scores: built.classifier.by_class} if built.classifier else {}
    outputs = {renamed.get(name, name): original for name, original in built.outputs.items()}
    for key, mapping in (("inputs", built.inputs), ("outputs", outputs), ("dtypes", built.dtypes)):
        target.userDefined[f"edgewright.{key}"] = json.dumps(mapping, ensure_ascii=True)


def _manifest(model_digest: str, weights_digest: str) -> bytes:
    model_id, weights_id = _identifier("model", model_digest), _identifier("weights", weights_digest)
    entries = {
        model_id: _item("CoreML Model Specification", MODEL_NAME, MODEL_NAME),
        weights_id: _item("CoreML Model Weights", WEIGHTS_DIR, WEIGHTS_DIR),
    }
    document = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": model_id}
    return (json.dumps(document, indent=4, sort_keys=True) + "\n").encode()


def _identifier(kind: str, digest: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{kind}:{digest}")).upper()


def _item(description: str, name: str, path: str) -> dict[str, str]:
    return {"author": AUTHOR, "description": description, "name": name, "path": f"{AUTHOR}/{path}"}


def _replace(new: Path, destination: Path) -> None:
    """Two renames: a folder cannot replace a filled folder in one. The old one comes back if the second fails."""
    old = destination.with_name(f".{destination.name}.{os.getpid()}.old")
    existed = destination.exists()
    if existed:
        destination.rename(old)
    try:
        new.rename(destination)
    except OSError:
        if existed:
            old.rename(destination)
        raise
    sync_dir(destination.parent)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)
