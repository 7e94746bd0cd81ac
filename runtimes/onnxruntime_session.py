"""Runs .onnx and .ort files with onnxruntime, from a path or from memory."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.errors import InferenceFailed, ModelLoadError, RuntimeMissing
from runtimes.session import (
    Array,
    Evidence,
    Feeds,
    RuntimeInfo,
    Session,
    SessionBase,
    SessionOptions,
    TensorSpec,
    check_feeds,
)

# onnxruntime spells types "tensor(float)"; numpy has other names for the same. bfloat16 and the 4-bit and 8-bit
# floats are left out: numpy cannot hold them without ml_dtypes, and no edge model takes them as an input.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}
_LOG = logging.getLogger(__name__)
_EXACT_MODE = "session.x64quantprecision"
_DEFAULT_PROVIDER = "CPUExecutionProvider"
_ERRORS_ONLY, _FATAL_ONLY = 3, 4  # onnxruntime's severity scale: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


def _onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off: its Linux wheels write files into the home folder otherwise.

    Raises:
        RuntimeMissing: the package is not installed, or its library does not load here.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing(
            f"onnxruntime cannot be imported: {error}.", remedy="Run pip install 'edgewright[agent-ort]'."
        ) from error
    return onnxruntime


class OnnxRuntimeSession(SessionBase):
    """One onnxruntime session; see ``Session`` for the contract.

    ``run`` passes arrays in and out in the machine's memory; outputs own their memory, so they stay valid.
    """

    def __init__(self, model: Path | bytes, options: SessionOptions, name: str) -> None:
        """Raises RuntimeMissing (package or provider), ModelLoadError."""
        ort = _onnxruntime()
        self._name = name
        self._profiles = _profile_folder() if options.profile else None
        self._session: Any = _open(ort, model, _session_options(ort, options, self._profiles), options, name)
        self._inputs = tuple(_spec(node, name) for node in self._session.get_inputs())
        self._outputs = tuple(_spec(node, name) for node in self._session.get_outputs())
        self._names = [spec.name for spec in self._outputs]
        self._runtime = RuntimeInfo("onnxruntime", ort.__version__, Evidence.EXECUTED)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def runtime(self) -> RuntimeInfo:
        return self._runtime

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Raises InputMismatch, InferenceFailed (also after ``close``)."""
        if self._session is None:
            raise InferenceFailed(f"{self._name}: the session is closed.", remedy="Open the model again.")
        check_feeds(self._inputs, feeds)
        names = self._names
        try:
            # A sliced or transposed view is legal numpy but onnxruntime reads only contiguous memory.
            results = self._session.run(names, {k: np.ascontiguousarray(v) if v.ndim else v for k, v in feeds.items()})
        except Exception as error:  # onnxruntime raises its own types, RuntimeError and ValueError alike
            raise InferenceFailed(
                f"{self._name}: onnxruntime failed while running: {_first_line(error)}",
                remedy="Check the shapes that the model computes from its inputs; run with -v for the trace.",
            ) from error
        return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}

    def end_profiling(self) -> bytes:
        """Stop profiling and return the JSON trace that onnxruntime wrote. Raises ValueError unless asked for."""
        if self._profiles is None or self._session is None:
            raise ValueError("the session was not opened with SessionOptions(profile=True), or is closed")
        trace = Path(self._session.end_profiling()).read_bytes()
        self._drop_profiles()
        return trace

    def close(self) -> None:
        self._session = (
            None  # the last reference: onnxruntime frees its arena here, and writes a trace not yet asked for
        )
        self._drop_profiles()

    def _drop_profiles(self) -> None:
        if self._profiles is not None:
            self._profiles.cleanup()
            self._profiles = None


def _profile_folder() -> Any:
    import tempfile  # brings every archive format with it; a board never profiles

    return tempfile.TemporaryDirectory(prefix="edgewright-profile-")


def _open(ort: Any, model: Path | bytes, settings: Any, options: SessionOptions, name: str) -> Any:
    provider = options.provider or _DEFAULT_PROVIDER
    available = ort.get_available_providers()
    if provider not in available:
        raise RuntimeMissing(
            f"onnxruntime here has no execution provider {provider!r}; it has {', '.join(available)}.",
            remedy="Choose one of these, or install an onnxruntime build with that provider.",
        )
    # The CPU provider comes last in every list: it takes the nodes that the chosen one refuses.
    chosen: list[Any] = [] if provider == _DEFAULT_PROVIDER else [(provider, dict(options.provider_options))]
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        session = open_exact(source, settings, [*chosen, _DEFAULT_PROVIDER])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelLoadError(
            f"onnxruntime cannot load {name}: {_first_line(error)}",
            remedy="Check that the file is whole, and that its opset and IR version suit this onnxruntime.",
        ) from error
    if provider not in session.get_providers():
        # onnxruntime only logs that a provider cannot start here, and goes on with the CPU.
        raise RuntimeMissing(
            f"onnxruntime's execution provider {provider!r} did not start.", remedy="Check its driver and libraries."
        )
    return session


def open_exact(model: str | bytes, options: Any, providers: list[Any]) -> Any:
    """An ``InferenceSession`` whose int8 products are exact on every CPU.

    x86 without VNNI saturates 16-bit sums of uint8 x int8 pairs. The precision mode takes exact uint8 x uint8 kernels, and only
    there (kOrtSessionOptionsAvx2PrecisionMode in onnxruntime_session_options_config_keys.h). onnxruntime 1.31 does not load
    every model in that mode: int8 activations have no kernel then, and need none, for int8 x int8 is exact by itself; and nodes
    that share an int8 initializer stop it, which costs exactness and is logged.

    Args:
        options: onnxruntime ``SessionOptions``; the mode is set on it.

    Raises:
        Exception: whatever onnxruntime raises.
    """
    ort = _onnxruntime()
    severity, options.log_severity_level = options.log_severity_level, _FATAL_ONLY  # the exception says what is wrong
    options.add_session_config_entry(_EXACT_MODE, "1")
    try:
        return ort.InferenceSession(model, sess_options=options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class
        options.add_session_config_entry(_EXACT_MODE, "0")
        options.log_severity_level = severity
        session = ort.InferenceSession(model, sess_options=options, providers=providers)
        if "replace the existing tensor" in str(error):
            _LOG.warning("Nodes share int8 constants: int8 products may saturate on an x86 CPU without VNNI.")
        return session


def _session_options(ort: Any, options: SessionOptions, profiles: Any) -> Any:
    result = ort.SessionOptions()
    result.intra_op_num_threads = options.threads
    # Edge nets are chains: parallel branches gain nothing and make latencies noisy.
    result.inter_op_num_threads = 1
    result.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    levels = ort.GraphOptimizationLevel
    result.graph_optimization_level = levels.ORT_ENABLE_ALL if options.optimise else levels.ORT_DISABLE_ALL
    result.log_severity_level = _ERRORS_ONLY
    # Products with integer weights alone stay float32, as the file says; the default rounds their inputs to int8.
    result.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if profiles is not None:  # a folder of its own: the default is the working directory
        result.profile_file_prefix = str(Path(profiles.name) / "onnxruntime")
        result.enable_profiling = True
    return result


def _spec(node: Any, model: str) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ModelLoadError(
            f"{model}: {node.name!r} has type {node.type}, which numpy cannot hold.",
            remedy="Cast it to a plain tensor type inside the model.",
        )
    # Free dimensions are None or a symbol's name; zero stands for "unknown" in old exporters' files.
    shape = tuple(d if isinstance(d, int) and d > 0 else None for d in node.shape)
    return TensorSpec(node.name, dtype, shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_bytes(model: bytes, options: SessionOptions | None = None, name: str = "model in memory") -> Session:
    """Open a serialized ONNX model. Raises RuntimeMissing, ModelLoadError.

    Args:
        model: a serialized ModelProto without external data.
        name: what error messages call it.
    """
    return OnnxRuntimeSession(model, options or SessionOptions(), name)


class OnnxRuntimeOpener:
    """Entry of RUNTIMES; see ``Opener``."""

    name = "onnxruntime"
    suffixes: tuple[str, ...] = (".onnx", ".ort")

    def available(self) -> str | None:
        """Looks for the package without importing it: the import takes about 0.2 s."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed (pip install 'edgewright[agent-ort]')"
        return None

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Raises ModelLoadError, RuntimeMissing."""
        if not path.is_file():
            raise ModelLoadError(f"{path} is not a file.", remedy="Check the path.")
        return OnnxRuntimeSession(path, options, path.name)


OPENER = OnnxRuntimeOpener()
