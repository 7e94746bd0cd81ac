"""The folder of a model: .mlpackage, whose Manifest.json names the model file under Data/, or the model file with its weights.

NAME.mlpackage/Manifest.json, Data/com.apple.CoreML/model.mlmodel, Data/com.apple.CoreML/weights/weight.bin
NAME.mlmodelc/model.mlmodel, weights/weight.bin
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtimes.coreml_reference.proto import model_class
from runtimes.errors import ModelLoadError

_REMEDY = "Export or copy the package again; it is incomplete or damaged."
MODEL_NAME = "model.mlmodel"
_MAX_MANIFEST_BYTES = 1 << 20
# Protobuf cannot hold more than 2 GiB; a program file beyond this has its weights inline, which no exporter does.
_MAX_MODEL_BYTES = 1 << 30


def read_package(path: Path) -> tuple[Any, Path]:
    """Parse the package at ``path``.

    Returns:
        the ``CoreML.Specification.Model`` message, and the folder that ``@model_path`` stands for.

    Raises:
        ModelLoadError: no package, no manifest, a path that leaves the package, or bytes that are no model.
    """
    if not path.is_dir():
        raise ModelLoadError(f"{path} is not a folder; a .mlpackage is one.", remedy="Give the package folder itself.")
    model_path = _root_model(path)
    try:
        if model_path.stat().st_size > _MAX_MODEL_BYTES:
            raise ModelLoadError(f"{model_path} exceeds {_MAX_MODEL_BYTES >> 20} MiB.", remedy=_REMEDY)
        raw = model_path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{model_path}: {error.strerror}.", remedy=_REMEDY) from error
    spec = model_class()()
    try:
        spec.ParseFromString(raw)
    except Exception as error:  # DecodeError; protobuf's backends also raise others on damaged bytes
        raise ModelLoadError(f"{model_path} is not a Core ML model: {error}.", remedy=_REMEDY) from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise ModelLoadError(
            f"{model_path} holds a {kind or 'model without content'}, not an ML program.",
            remedy="Convert it as an ML program (minimum deployment target iOS 15 or later).",
        )
    return spec, model_path.parent


def _root_model(path: Path) -> Path:
    """Where the model is: as Manifest.json says, or beside its weights in a folder without one (a .mlmodelc-style program).

    Source: rootModelIdentifier and itemInfoEntries of the manifest, v1.0.0.
    """
    manifest = path / "Manifest.json"
    if not manifest.exists():
        if (path / MODEL_NAME).is_file():
            return path / MODEL_NAME
        if (path / "model.mil").exists() or (path / "coremldata.bin").exists():
            raise ModelLoadError(
                f"{path} was compiled by Apple's coremlc: its program is text in a format of its own, not a protobuf.",
                remedy="Give the .mlpackage that it was compiled from, or open it with the coreml runtime on macOS.",
            )
    try:
        if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError(f"exceeds {_MAX_MANIFEST_BYTES} bytes")
        content = json.loads(manifest.read_text("utf-8"))
        relative = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
        target = inside(path / "Data", str(relative))
    except OSError as error:
        raise ModelLoadError(f"{manifest}: {error.strerror}.", remedy=_REMEDY) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelLoadError(f"{manifest} does not name the model: {error!r}.", remedy=_REMEDY) from error
    return target


def inside(folder: Path, relative: str) -> Path:
    """``folder / relative``. Raises ValueError if that leaves ``folder``, by "..", an absolute path or a link."""
    target = (folder / relative).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ValueError(f"{relative!r} leaves {folder.name}/")
    return target
