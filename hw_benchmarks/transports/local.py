"""This machine: a fresh child process for each measurement."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hw_benchmarks.transports.base import read_answer, run_command


class Local:
    def __init__(self, address: str) -> None:
        self._target = "this machine"

    def prepare(self, artifact: Path) -> str:
        return str(artifact.resolve())

    def measure(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        command = [sys.executable, "-m", "hw_benchmarks.measure", json.dumps(request)]
        return read_answer(run_command(command, timeout_s, self._target), self._target)

    def close(self) -> None:
        return None
