"""Core ML's adapter: refused with a reason off macOS; names and dtypes mapped around whatever predicts."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from runtimes.coreml_reference.session import read_ports
from runtimes.coreml_session import OPENER, CoreMLSession
from runtimes.errors import InferenceFailed, InputMismatch, RuntimeMissing
from runtimes.registry import open_session
from runtimes.session import Array, Evidence, SessionOptions


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


def test_a_failing_framework_is_reported(tiny_package: Path) -> None:
    session = CoreMLSession(object(), *read_ports(tiny_package))
    with pytest.raises(InferenceFailed, match="Core ML failed"):
        session.run({"x": np.ones((2, 3), np.float32)})
