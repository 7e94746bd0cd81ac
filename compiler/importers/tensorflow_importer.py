"""Imports Keras files and SavedModel folders through tf2onnx, in a child process: TensorFlow takes over a process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compiler.errors import ExtraMissing, SourceError
from compiler.hub import Imported, SourceInfo
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from compiler.importers.onnx_importer import read_model
from runtimes.artifact.files import sha256_tree
from runtimes.errors import InferenceFailed
from runtimes.session import Array, Evidence, Feeds, RuntimeInfo, SessionBase, TensorSpec, check_feeds

_TIMEOUT_S = 600


class TensorFlowImporter:
    """Entry of IMPORTERS; see ``Importer``."""

    name = "tensorflow"

    def recognises(self, source: str) -> bool:
        path = Path(source)
        return path.suffix in (".keras", ".h5") or (path / "saved_model.pb").is_file()

    def load(self, source: str, options: ImportOptions) -> Imported:
        """The reference is the source itself, run by TensorFlow in child processes.

        Raises:
            SourceError: missing or damaged source.
            ExtraMissing: tensorflow or tf2onnx is not installed.
            UnsupportedModel: see ``to_hub``.
        """
        path = Path(source)
        if not path.exists():
            raise SourceError(f"{source} does not exist.", remedy="Check the path of the model.")
        _require_packages()
        with tempfile.TemporaryDirectory(prefix="edgewright-tensorflow-") as folder:
            converted = Path(folder) / "model.onnx"
            specs = json.loads(_child("convert", [source, str(converted)], SourceError))
            model = to_hub(read_model(converted), options)
        inputs, outputs = (tuple(TensorSpec(n, d, tuple(s)) for n, d, s in specs[k]) for k in ("inputs", "outputs"))
        reference = TensorFlowSession(source, inputs, outputs, str(specs["version"]))
        return Imported(model, reference, SourceInfo(self.name, source, sha256_tree(path)))


def _require_packages() -> None:
    missing = [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExtraMissing(
            f"TensorFlow sources need {' and '.join(missing)}.", remedy="Run pip install 'edgewright[tensorflow]'."
        )


def _child(action: str, arguments: Sequence[str], failure: type[SourceError] | type[InferenceFailed]) -> str:
    """Run compiler/importers/tensorflow_child.py and return its last line of output."""
    command = [sys.executable, "-m", "compiler.importers.tensorflow_child", action, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise failure(
            f"TensorFlow took more than {_TIMEOUT_S} s.", remedy="Convert the model to ONNX yourself, and give that."
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise failure(
            f"TensorFlow failed in step {action!r}: {lines[-1]}", remedy="Load and run the model in TensorFlow once."
        )
    return done.stdout.strip().splitlines()[-1]


class TensorFlowSession(SessionBase):
    """Runs the source in a child process per call: slow, but TensorFlow never enters this process. See ``Session``."""

    def __init__(
        self, source: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], version: str
    ) -> None:
        self._source, self._inputs, self._outputs = source, inputs, outputs
        self._runtime = RuntimeInfo("tensorflow", version, Evidence.EXECUTED)

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
        """Raises InputMismatch, InferenceFailed."""
        check_feeds(self._inputs, feeds)
        with tempfile.TemporaryDirectory(prefix="edgewright-tensorflow-") as folder:
            fed, got = Path(folder) / "in.npz", Path(folder) / "out.npz"
            np.savez(fed, *[feeds[spec.name] for spec in self._inputs])
            _child("run", [self._source, str(fed), str(got)], InferenceFailed)
            with np.load(got) as arrays:
                return {spec.name: arrays[f"arr_{i}"] for i, spec in enumerate(self._outputs)}


IMPORTER = TensorFlowImporter()
