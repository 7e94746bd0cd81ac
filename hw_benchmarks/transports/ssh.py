"""A board over the system's ssh and scp, with the user's own keys; only python3 and the runtime are needed there."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from hw_benchmarks.errors import TargetUnreachable
from hw_benchmarks.transports.base import read_answer, run_command, write_bundle

ADDRESS = re.compile(r"(?P<host>(?:[\w.-]+@)?[\w.-]+)(?::(?P<port>\d{1,5}))?")
COPY_TIMEOUT_S = 300.0
OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")


class Ssh:
    """``address``: [user@]host[:port]. BatchMode: a pipeline must never wait at a password prompt."""

    def __init__(self, address: str) -> None:
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise TargetUnreachable(
                f"ssh://{address} is no address.", remedy="Write ssh://user@host or ssh://user@host:port."
            )
        self._host, self._port = match["host"], match["port"]
        self._folder = self._shell("mktemp -d", COPY_TIMEOUT_S).strip()
        with tempfile.TemporaryDirectory() as local:
            bundle = Path(local) / "bench.pyz"
            write_bundle(bundle)
            self._copy(bundle)

    def prepare(self, artifact: Path) -> str:
        self._copy(artifact)
        return f"{self._folder}/{artifact.name}"

    def measure(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        command = f"python3 {shlex.quote(self._folder + '/bench.pyz')} {shlex.quote(json.dumps(request))}"
        return read_answer(self._shell(command, timeout_s), self._host)

    def close(self) -> None:
        self._shell(f"rm -rf {shlex.quote(self._folder)}", COPY_TIMEOUT_S)

    def _shell(self, command: str, timeout_s: float) -> str:
        port = ["-p", self._port] if self._port else []
        return run_command(["ssh", *OPTIONS, *port, self._host, command], timeout_s, self._host)

    def _copy(self, path: Path) -> None:
        port = ["-P", self._port] if self._port else []
        command = ["scp", "-r", "-q", *OPTIONS, *port, str(path), f"{self._host}:{self._folder}/"]
        run_command(command, COPY_TIMEOUT_S, self._host)
