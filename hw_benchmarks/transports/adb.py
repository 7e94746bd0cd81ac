"""An Android phone over adb. Needs a python3 there (Termux has one) whose path EDGEWRIGHT_ADB_PYTHON names if it is not on PATH."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from hw_benchmarks.transports.base import read_answer, run_command, write_bundle

COPY_TIMEOUT_S = 300.0


class Adb:
    """``address``: the device's serial number, as `adb devices` lists it; empty if only one is attached."""

    def __init__(self, address: str) -> None:
        self._adb = ["adb", *(["-s", address] if address else [])]
        self._target = f"adb:{address}"
        self._folder = self._shell("mktemp -d /data/local/tmp/edgewright.XXXXXX", COPY_TIMEOUT_S).strip()
        with tempfile.TemporaryDirectory() as local:
            bundle = Path(local) / "bench.pyz"
            write_bundle(bundle)
            self._push(bundle)

    def prepare(self, artifact: Path) -> str:
        self._push(artifact)
        return f"{self._folder}/{artifact.name}"

    def measure(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        python = os.environ.get("EDGEWRIGHT_ADB_PYTHON", "python3")
        command = f"{python} {shlex.quote(self._folder + '/bench.pyz')} {shlex.quote(json.dumps(request))}"
        return read_answer(self._shell(command, timeout_s), self._target)

    def close(self) -> None:
        self._shell(f"rm -rf {shlex.quote(self._folder)}", COPY_TIMEOUT_S)

    def _shell(self, command: str, timeout_s: float) -> str:
        return run_command([*self._adb, "shell", command], timeout_s, self._target)

    def _push(self, path: Path) -> None:
        run_command([*self._adb, "push", str(path), f"{self._folder}/"], COPY_TIMEOUT_S, self._target)
