"""What LiteRT and tflite-runtime share: both are the same interpreter under two package names."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtimes.errors import InferenceFailed, ModelLoadError, RuntimeMissing
from runtimes.scaling import Scaling
from runtimes.session import (
    Array,
    Evidence,
    Feeds,
    RuntimeInfo,
    SessionBase,
    SessionOptions,
    TensorSpec,
    check_feeds,
)

IDENTIFIER = b"TFL3"  # bytes 4..7 of the flatbuffer: file_identifier in LiteRT's schema.fbs
SIGNATURE = "serving_default"
SCALED = ("int8", "uint8", "int16")

# OpResolverType members by the names that SessionOptions.provider takes; the value None is LiteRT's default.
RESOLVERS: dict[str | None, str] = {
    None: "AUTO",
    "xnnpack": "BUILTIN",  # optimized kernels and the default delegate
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}


class _Port(NamedTuple):
    """One input or output: its tensor's number in the interpreter and how users see it. ``scaling``: it is stored as integers."""

    number: int
    spec: TensorSpec
    scaling: Scaling | None


class InterpreterSession(SessionBase):
    """A .tflite file on an ``Interpreter``.

    Names come from the file's signature; a file without a usable one is read by its tensor names, without TensorFlow's
    "serving_default_" prefix and ":0" suffix. A free batch size is resized to what the feed brings. Integer inputs and outputs
    with a scale are float32 to the caller: the same numbers as those of every other artifact of the model.
    """

    def __init__(self, interpreter: Any, info: RuntimeInfo, path: Path) -> None:
        self._interpreter: Any = interpreter
        self._info = info
        self._path = path
        names = _signature_names(interpreter)
        self._inputs = _ports(interpreter.get_input_details(), names[0])
        self._outputs = _ports(interpreter.get_output_details(), names[1])
        self._shapes: dict[int, tuple[int, ...]] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._outputs)

    @property
    def runtime(self) -> RuntimeInfo:
        return self._info

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once. Raises InputMismatch, InferenceFailed."""
        if self._interpreter is None:
            raise InferenceFailed(f"The session of {self._path} is closed.", remedy="Open the artifact again.")
        check_feeds(self.inputs, feeds)
        try:
            self._resize(feeds)
            for port in self._inputs:
                array = feeds[port.spec.name]  # ascontiguousarray would give a scalar a dimension
                array = port.scaling.to_integers(array) if port.scaling else array
                self._interpreter.set_tensor(port.number, np.ascontiguousarray(array) if array.ndim else array)
            self._interpreter.invoke()
            # get_tensor copies, so that the arrays outlive the next run.
            return {port.spec.name: self._read(port) for port in self._outputs}
        except (RuntimeError, ValueError) as error:
            raise InferenceFailed(
                f"{self._info.name} failed on {self._path}: {_one_line(error)}.",
                remedy="Build the artifact again, or compare it with provider 'builtin' to find the failing operator.",
            ) from error

    def _read(self, port: _Port) -> Array:
        stored: Array = self._content(port)
        return port.scaling.to_reals(stored) if port.scaling else stored

    def _content(self, port: _Port) -> Array:
        """LiteRT's Python interface hands out no tensor without elements, which a result sized by the data can be."""
        try:
            content: Array = self._interpreter.get_tensor(port.number)
        except ValueError:
            details = {int(d["index"]): d for d in self._interpreter.get_output_details()}
            detail = details[port.number]
            if 0 not in detail["shape"]:
                raise
            return np.zeros(tuple(int(size) for size in detail["shape"]), detail["dtype"])
        return content

    def _resize(self, feeds: Feeds) -> None:
        changed = False
        for port in self._inputs:
            shape = feeds[port.spec.name].shape
            if None in port.spec.shape and self._shapes.get(port.number) != shape:
                self._interpreter.resize_tensor_input(port.number, list(shape))
                self._shapes[port.number] = shape
                changed = True
        if changed:
            self._interpreter.allocate_tensors()

    def close(self) -> None:
        self._interpreter = None


def _ports(details: list[dict[str, Any]], names: dict[int, list[str]]) -> tuple[_Port, ...]:
    return tuple(_port(d, names.get(int(d["index"]), [])) for d in details)


def _port(detail: dict[str, Any], names: list[str]) -> _Port:
    scale, zero_point = detail["quantization"]
    dtype = np.dtype(detail["dtype"])
    scaling = Scaling(dtype, float(scale), int(zero_point)) if scale > 0 and dtype.name in SCALED else None
    return _Port(int(detail["index"]), _spec(detail, names, "float32" if scaling else dtype.name), scaling)


def _spec(detail: dict[str, Any], names: list[str], dtype: str) -> TensorSpec:
    # A signature may give one tensor several names; details then list the tensor as often.
    name = names.pop(0) if names else detail["name"].removesuffix(":0").removeprefix(f"{SIGNATURE}_")
    signature = detail.get("shape_signature", detail["shape"])
    sizes = signature if len(signature) else detail["shape"]
    return TensorSpec(name, dtype, tuple(None if d < 0 else int(d) for d in sizes))


def _signature_names(interpreter: Any) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Tensor index -> names in the signature, for inputs and outputs; empty unless it covers the main graph's ports."""
    empty: tuple[dict[int, list[str]], dict[int, list[str]]] = ({}, {})
    keys = list(interpreter.get_signature_list())
    key = SIGNATURE if SIGNATURE in keys else next(iter(keys), None)
    if key is None:
        return empty
    runner = interpreter.get_signature_runner(key)
    found: list[dict[int, list[str]]] = []
    for details, ports in (
        (runner.get_input_details(), interpreter.get_input_details()),
        (runner.get_output_details(), interpreter.get_output_details()),
    ):
        names: dict[int, list[str]] = {}
        for name, detail in details.items():
            names.setdefault(int(detail["index"]), []).append(name)
        if {int(port["index"]) for port in ports} != set(names):
            return empty  # the signature belongs to another subgraph
        found.append(names)
    return found[0], found[1]


class InterpreterOpener:
    """Opens .tflite files with ``module``'s Interpreter.

    Args:
        name: the runtime's name in RUNTIMES.
        module: import path of the interpreter module.
        package: the distribution that brings it, for versions.
        extra: our extra that installs it, for the remedy.
    """

    suffixes: tuple[str, ...] = (".tflite",)

    def __init__(self, name: str, module: str, package: str, extra: str) -> None:
        self.name, self.module, self.package, self.extra = name, module, package, extra

    def available(self) -> str | None:
        if importlib.util.find_spec(self.module.split(".")[0]) is None:
            return f"{self.package} is not installed"
        return None

    def open(self, path: Path, options: SessionOptions) -> InterpreterSession:
        """Load ``path``. ``options.profile`` has no effect: the Python interpreter reports no times per operator.

        Raises:
            RuntimeMissing: the package is not installed, or the provider is unknown.
            ModelLoadError: the file is missing, is no .tflite file, or uses what this runtime lacks.
        """
        reason = self.available()
        if reason is not None:
            raise RuntimeMissing(
                f"{path.name} needs {self.name}, but {reason}.", remedy=f"Run pip install 'edgewright[{self.extra}]'."
            )
        _check_identifier(path)
        interpreter = self._interpreter(path, options)
        info = RuntimeInfo(self.name, self._version(), Evidence.EXECUTED)
        try:
            interpreter.allocate_tensors()
            return InterpreterSession(interpreter, info, path)
        except (RuntimeError, ValueError) as error:
            raise _cannot_load(self.name, path, error) from error

    def _version(self) -> str:
        said = getattr(importlib.import_module(self.module.split(".")[0]), "__version__", None)
        if isinstance(said, str):
            return said
        from importlib.metadata import version  # brings mail and archive formats with it; a board's start needs none

        return version(self.package)

    def _interpreter(self, path: Path, options: SessionOptions) -> Any:
        module = importlib.import_module(self.module)
        library = options.provider if options.provider and "/" in options.provider else None
        if library is None and options.provider not in RESOLVERS:
            raise RuntimeMissing(
                f"{self.name} has no provider {options.provider!r}.",
                remedy=f"Use one of {', '.join(name for name in RESOLVERS if name)}, or the path of a delegate's library.",
            )
        delegates = [self._delegate(module, library, options)] if library else None
        try:
            return module.Interpreter(
                model_path=str(path),
                num_threads=options.threads or None,
                experimental_delegates=delegates,
                experimental_op_resolver_type=module.OpResolverType[RESOLVERS[None if library else options.provider]],
            )
        except (RuntimeError, ValueError) as error:
            raise _cannot_load(self.name, path, error) from error

    def _delegate(self, module: Any, library: str, options: SessionOptions) -> Any:
        """An external delegate. Source: tensorflow/lite/delegates/external (tflite_plugin_create_delegate)."""
        try:
            if not Path(library).exists():  # load_delegate's own object complains again when it is collected
                raise OSError("there is no such file")
            return module.load_delegate(library, dict(options.provider_options))
        except (OSError, ValueError, RuntimeError) as error:
            raise RuntimeMissing(
                f"{self.name} cannot start the delegate {library}: {_one_line(error)}.",
                remedy="Check the path, its driver, and that the device is attached.",
            ) from error


def _check_identifier(path: Path) -> None:
    # The interpreter verifies the flatbuffer itself; this gives the common mistake (another format) a clear message.
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ModelLoadError(
            f"Cannot read {path}: {error.strerror or error}.", remedy="Check the path and its permissions."
        ) from error
    if head[4:8] != IDENTIFIER:
        raise ModelLoadError(
            f"{path} is not a .tflite file: bytes 4 to 7 are {head[4:8]!r}, expected {IDENTIFIER!r}.",
            remedy="Give the path of a TFLite flatbuffer, or fetch the file again.",
        )


def _cannot_load(name: str, path: Path, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"{name} cannot load {path}: {_one_line(error)}.", remedy="Check that the file is whole, or build it again."
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
