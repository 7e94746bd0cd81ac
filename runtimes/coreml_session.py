"""Core ML itself, through coremltools' MLModel.predict: macOS only, and the one proof that holds for Apple's devices."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.coreml_reference.ports import Port, fit_feeds
from runtimes.coreml_reference.session import read_ports
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
)


class CoreMLSession(SessionBase):
    """One package, compiled and run by the system. ``model`` is a coremltools ``MLModel``."""

    def __init__(self, model: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        self._model: Any = model
        self._inputs, self._outputs = inputs, outputs

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._outputs)

    @property
    def runtime(self) -> RuntimeInfo:
        # Core ML ships with the system, so the system's version is its version.
        return RuntimeInfo("coreml", platform.mac_ver()[0] or "unknown", Evidence.DEVICE_VERIFIED)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Raises InputMismatch, InferenceFailed."""
        fitted = fit_feeds(self._inputs, feeds)
        fed = {port.mil_name: _fed(port, fitted[port.spec.name]) for port in self._inputs}
        try:
            results = self._model.predict(fed)
            return {port.spec.name: _answer(port, results[port.mil_name]) for port in self._outputs}
        except Exception as error:  # the proxy turns every failure of the framework into RuntimeError or its kin
            raise InferenceFailed(
                f"Core ML failed: {error}.", remedy="Compare with --runtime coreml-reference to find the operation."
            ) from error

    def close(self) -> None:
        self._model = None


def _fed(port: Port, array: Array) -> Any:
    """What ``predict`` takes: arrays, and pictures as Pillow's. Raises InputMismatch, RuntimeMissing.

    A package of BGR pictures takes RGB ones: the system turns the colours.
    """
    if port.picture is None:
        return array
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeMissing("Pictures need Pillow.", remedy="Run pip install 'edgewright[images]'.") from error
    pixels = port.picture.pixels(array, port.spec.name)
    if port.picture.colour == "GRAY":
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0]), "L")
    turned = pixels[:, :, ::-1] if port.picture.colour == "BGR" else pixels
    return Image.fromarray(np.ascontiguousarray(turned), "RGB")


def _answer(port: Port, result: Any) -> Array:
    """A tensor as it is; a dictionary's scores in the order of the classes; a class's name as one element."""
    if port.classes:
        scores = [result[name] for name in port.classes]
        return np.array(scores, dtype=port.spec.dtype).reshape([d or -1 for d in port.spec.shape])
    if port.spec.dtype in ("str", "int64") and np.ndim(result) == 0:
        return np.array([result], dtype=port.spec.dtype)
    return np.array(result, dtype=port.spec.dtype)


class CoreMLOpener:
    """Opens packages on macOS. ``options.provider`` names a compute unit: ALL, CPU_ONLY, CPU_AND_GPU, CPU_AND_NE."""

    name = "coreml"
    suffixes: tuple[str, ...] = (".mlpackage",)

    def available(self) -> str | None:
        if platform.system() != "Darwin":
            return f"Core ML runs on macOS only, this is {platform.system()}"
        if importlib.util.find_spec("coremltools") is None:
            return "coremltools is not installed"
        return None

    def open(self, path: Path, options: SessionOptions) -> Session:
        """Raises RuntimeMissing, ModelLoadError."""
        reason = self.available()
        if reason is not None:
            raise RuntimeMissing(f"{path.name}: {reason}.", remedy="Use --runtime coreml-reference here.")
        inputs, outputs = read_ports(path)
        import coremltools

        unit = options.provider or "ALL"
        if unit not in coremltools.ComputeUnit.__members__:
            raise ModelLoadError(
                f"{unit!r} is no compute unit.", remedy=f"Use one of {', '.join(coremltools.ComputeUnit.__members__)}."
            )
        try:
            model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit[unit])
        except Exception as error:  # compilation failures arrive as RuntimeError or plain Exception
            raise ModelLoadError(f"Core ML refuses {path}: {error}.", remedy="Export the package again.") from error
        return CoreMLSession(model, inputs, outputs)


OPENER = CoreMLOpener()
