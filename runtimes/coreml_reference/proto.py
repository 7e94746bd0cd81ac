"""The protobuf classes of the Core ML format, without importing coremltools.

Importing coremltools costs seconds and pulls in torch and scikit-learn where they are installed; the generated
``*_pb2`` modules need protobuf only. They are therefore imported from coremltools' folder under a package name of our
own. Both copies may live in one process: they register the same bytes in protobuf's pool, which accepts that.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from runtimes.errors import RuntimeMissing

_ALIAS = "_edgewright_coreml_proto"


def proto_folder() -> Path | None:
    """The folder of coremltools' generated modules, found without running coremltools; None if it is not installed."""
    try:
        spec = importlib.util.find_spec("coremltools")
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "proto"
        if (folder / "Model_pb2.py").is_file() and importlib.util.find_spec("google.protobuf"):
            return folder
    return None


@cache
def _load(name: str) -> ModuleType:
    folder = proto_folder()
    if folder is None:
        raise RuntimeMissing(
            "coremltools is not installed, whose protobuf classes read Core ML packages.",
            remedy="Install it with pip install 'edgewright[coreml]'.",
        )
    if _ALIAS not in sys.modules:
        package = ModuleType(_ALIAS)
        package.__path__ = [str(folder)]
        sys.modules[_ALIAS] = package
    return importlib.import_module(f"{_ALIAS}.{name}")


def model_class() -> Any:
    """``CoreML.Specification.Model``. Raises RuntimeMissing."""
    return _load("Model_pb2").Model


def data_type_name(number: int) -> str:
    """Name of a MIL ``DataType`` enumerator, "FLOAT16" for 10; "DataType(n)" for a number this version lacks."""
    try:
        return str(_load("MIL_pb2").DataType.Name(number))
    except ValueError:
        return f"DataType({number})"


def array_type_name(number: int) -> str:
    """Name of an ``ArrayFeatureType.ArrayDataType`` enumerator, "FLOAT32" for 65568."""
    try:
        return str(_load("FeatureTypes_pb2").ArrayFeatureType.ArrayDataType.Name(number))
    except ValueError:
        return f"ArrayDataType({number})"
