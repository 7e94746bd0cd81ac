"""The TensorFlow importer's seam; the conversion itself runs where TensorFlow is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.errors import ExtraMissing, SourceError
from compiler.importers import import_model
from compiler.passes.serialize import to_bytes
from runtimes.onnxruntime_session import open_bytes

INSTALLED = all(importlib.util.find_spec(name) for name in ("tensorflow", "tf2onnx"))


def test_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.keras"
    path.write_bytes(b"anything")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExtraMissing) as caught:
        import_model(str(path))
    assert "edgewright[tensorflow]" in caught.value.remedy


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        import_model(str(tmp_path / "none.keras"))


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="tensorflow and tf2onnx are not installed")
def test_a_keras_net_keeps_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    script = (
        "import keras, sys\n"
        "net = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()])\n"
        "net.save(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    imported = import_model(str(path))
    with open_bytes(to_bytes(imported.model)) as hub:
        feeds = {s.name: np.random.default_rng(0).standard_normal(s.shape).astype(np.float32) for s in hub.inputs}
        want, got = imported.reference.run(feeds), hub.run(feeds)
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, atol=1e-5 * np.ptp(expected))
