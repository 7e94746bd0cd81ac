"""Core ML's adapter: refused with a reason off macOS; names and dtypes mapped around whatever predicts."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.coreml_reference.ports import Picture, Port
from runtimes.coreml_reference.session import read_ports
from runtimes.coreml_session import OPENER, CoreMLSession
from runtimes.errors import InferenceFailed, InputMismatch, RuntimeMissing
from runtimes.registry import open_session
from runtimes.session import Array, Evidence, SessionOptions, TensorSpec


class Model:
    """Stands where coremltools' MLModel stands: MIL names in, MIL names out."""

    def predict(self, feeds: dict[str, Array]) -> dict[str, Array]:
        return {"mil_y": feeds["mil_x"].astype(np.float64) * 2}


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML runs here")
def test_off_macos_the_reason_is_told_and_the_reference_takes_over(tiny_package: Path) -> None:
    reason = OPENER.available()
    assert reason is not None and "macOS only" in reason
    with pytest.raises(RuntimeMissing, match="macOS only"):
        OPENER.open(tiny_package, SessionOptions())
    with open_session(tiny_package) as session:
        assert session.runtime.name == "coreml-reference"


def test_names_and_dtypes_are_mapped(tiny_package: Path) -> None:
    session = CoreMLSession(Model(), *read_ports(tiny_package))
    y = session.run({"x": np.ones((2, 3), np.float32)})["y"]
    assert y.dtype == np.float32 and np.all(y == 2)
    assert session.runtime.evidence is Evidence.DEVICE_VERIFIED
    with pytest.raises(InputMismatch):
        session.run({"mil_x": np.ones((2, 3), np.float32)})


class Sees:
    """A classifier of pictures: the class by the mean of the first channel, and what it was handed."""

    def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.seen = feeds["image"]
        first = float(np.asarray(self.seen, np.float32)[..., 0].mean())
        return {"classLabel": "light" if first > 99 else "dark", "classLabel_probs": {"light": first, "dark": -first}}


@pytest.mark.parametrize("colour", ["RGB", "BGR", "GRAY"])
def test_pictures_go_in_and_classes_come_out(colour: str) -> None:
    channels = 1 if colour == "GRAY" else 3
    picture = Picture(colour, channels, "NCHW", (0.5,) * channels, (-1.0,) * channels)
    ports = (Port("image", TensorSpec("x", "float32", (1, channels, 2, 3)), picture=picture),)
    scores = Port("classLabel_probs", TensorSpec("y", "float32", (1, 2)), classes=("dark", "light"))
    model = Sees()
    session = CoreMLSession(model, ports, (Port("classLabel", TensorSpec("classLabel", "str", (1,))), scores))
    pixels = np.arange(6 * channels, dtype=np.float32).reshape(1, channels, 2, 3)
    answers = session.run({"x": pixels * 0.5 - 1})
    seen = np.asarray(model.seen)
    assert model.seen.mode == ("L" if colour == "GRAY" else "RGB") and model.seen.size == (3, 2)
    turned = pixels[0, ::-1] if colour == "BGR" else pixels[0]
    assert np.array_equal(seen.reshape(2, 3, channels), turned.transpose(1, 2, 0))
    assert answers["classLabel"].tolist() == ["dark"]
    assert answers["y"].shape == (1, 2) and answers["y"][0, 0] == -answers["y"][0, 1]
    with pytest.raises(InputMismatch, match="would need pixels"):
        session.run({"x": np.full((1, channels, 2, 3), 1000, np.float32)})


def test_a_failing_framework_is_reported(tiny_package: Path) -> None:
    session = CoreMLSession(object(), *read_ports(tiny_package))
    with pytest.raises(InferenceFailed, match="Core ML failed"):
        session.run({"x": np.ones((2, 3), np.float32)})
