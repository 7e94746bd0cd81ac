"""Imports .onnx files, which may come from anywhere: nothing outside the model's folder is read, sizes are capped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.external_data_helper
from google.protobuf.message import DecodeError

from compiler.errors import SourceError
from compiler.hub import Imported, SourceInfo
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from compiler.importers.quantized import is_quantized, quantizes_channels
from profiles.errors import EdgewrightError
from runtimes.artifact.files import sha256_file
from runtimes.errors import ModelLoadError, RuntimeMissing
from runtimes.onnxruntime_session import OnnxRuntimeSession
from runtimes.session import SessionOptions

MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit; the hub is one protobuf message, external data included


class OnnxImporter:
    """Entry of IMPORTERS; see ``Importer``."""

    name = "onnx"

    def recognises(self, source: str) -> bool:
        return source.endswith(".onnx")

    def load(self, source: str, options: ImportOptions) -> Imported:
        """The reference is onnxruntime on the file as it is.

        Raises:
            SourceError: missing, damaged or too large file, external data outside the folder, free dimensions.
            UnsupportedModel: see ``to_hub``.
            ExtraMissing, RuntimeMissing: onnxsim or onnxruntime is not installed.
        """
        path = Path(source)
        proto = read_model(path)
        model = to_hub(proto, options)
        return Imported(model, _reference(path, proto), SourceInfo(self.name, source, sha256_file(path)))


def read_model(path: Path) -> onnx.ModelProto:
    """Parse and check ``path`` with its external data. Raises SourceError."""
    size = _size(path)
    if size > MAX_MODEL_BYTES:
        raise SourceError(f"{path} has {size} bytes, more than 2 GiB.", remedy="Choose a model that edge devices hold.")
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    load_external_data(proto, path)
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise _damaged(path, error) from error
    return proto


def _size(path: Path) -> int:
    try:
        if not path.is_file():
            raise SourceError(f"{path} is not a file.", remedy="Check the path of the model.")
        return path.stat().st_size
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror}.", remedy="Check the path and its rights."
        ) from error


def _damaged(path: Path, error: Exception) -> EdgewrightError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SourceError(
        f"{path} is not a valid ONNX model: {first}",
        remedy="Check that the file is whole; export or download it again.",
    )


def load_external_data(proto: onnx.ModelProto, path: Path) -> None:
    """Bring tensors that lie in other files into ``proto``.

    Raises:
        SourceError: a location leaves the model's folder (absolute, '..', symbolic link), is missing, or too large.
    """
    total = 0
    for tensor in _tensors(proto.graph):
        if not onnx.external_data_helper.uses_external_data(tensor):
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        data = _inside(path, location, tensor.name)
        total += min(_size(data), _declared_bytes(tensor))
        if total > MAX_MODEL_BYTES:
            raise SourceError(
                f"{path}: external data has more than 2 GiB.", remedy="Choose a model that edge devices hold."
            )
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise _damaged(path, error) from error


def _declared_bytes(tensor: onnx.TensorProto) -> int:
    length = next((entry.value for entry in tensor.external_data if entry.key == "length"), "")
    return int(length) if length.isdigit() else MAX_MODEL_BYTES


def _inside(path: Path, location: str, tensor: str) -> Path:
    folder = path.parent.resolve()
    data = folder / location
    if not location or Path(location).is_absolute() or not data.resolve().is_relative_to(folder) or data.is_symlink():
        raise SourceError(
            f"{path}: tensor {tensor!r} points to {location!r}, outside the model's folder.",
            remedy="Put the data file beside the model, and write its relative name into it.",
        )
    return data


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for subgraph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(subgraph)


def _reference(path: Path, proto: onnx.ModelProto) -> OnnxRuntimeSession:
    """onnxruntime on the file. Its optimiser breaks some quantized files as NNCF writes them, which run as they are written:
    those that mix int8 and uint8 ("output_dtype INT8 does not match y_zero_point type UINT8" when the file is opened), and those
    with scales per channel of activations ("input zero point must be a scalar" when it is run)."""
    settings = [SessionOptions()] if not quantizes_channels(proto) else []
    settings += [SessionOptions(optimise=False)] if is_quantized(proto) else []
    for one in settings[:-1]:
        with contextlib.suppress(ModelLoadError):
            return OnnxRuntimeSession(path, one, path.name)
    try:
        return OnnxRuntimeSession(path, settings[-1], path.name)
    except RuntimeMissing:
        raise
    except ModelLoadError as error:
        raise SourceError(error.message, remedy=error.remedy) from error


IMPORTER = OnnxImporter()
