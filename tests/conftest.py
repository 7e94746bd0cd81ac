"""Shared fixtures. Small models are ONNX text inside each test; real models are read where they stand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# onnxruntime's Linux wheels write telemetry files into the home folder unless this is set before import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

REALDATA = Path(__file__).resolve().parents[2] / "shared" / "realdata"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real models and data; the test is skipped where it is missing."""
    if not REALDATA.is_dir():
        pytest.skip(f"real models are not here ({REALDATA})")
    return REALDATA
