"""The trial of a candidate: a child process runs it on the release's own vectors; this side judges, whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from device_agent.config import TrialConfig
from device_agent.trial_child import peak_memory_bytes
from runtimes.artifact.manifest import SelfTest

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial found. ``reason`` is empty exactly if the candidate passed."""

    reason: str = ""
    max_abs_error: float | None = None
    worst_output: str = ""
    agreement: float | None = None
    samples: int = 0
    latency_ms: float | None = None
    peak_memory_bytes: int = 0
    duration_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.reason

    def document(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def run_trial(
    folder: Path, opened: str, self_test: SelfTest, *, runtime: str, threads: int, limits: TrialConfig
) -> Verdict:
    """Run the candidate in a child and judge it.

    Args:
        folder: the staged slot, with manifest.json and the vectors.
        opened: what a session opens, relative to ``folder``.
    """
    start = time.monotonic()
    memory = _stricter(self_test.max_memory_bytes, limits.max_memory_bytes)
    request = {"folder": str(folder), "open": opened, "runtime": runtime, "threads": threads}
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as noise:
        child = subprocess.Popen(
            [sys.executable, "-m", "device_agent.trial_child"],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=noise,
            env=_environment(),
            start_new_session=True,
        )
        reason, peak = _watch(child, json.dumps(request).encode(), limits.timeout_s, memory)
        answer.seek(0)
        noise.seek(0)
        found = _answer(answer.read(), child.returncode, noise.read()[-400:].decode("utf-8", "replace"))
    found["peak_memory_bytes"] = max(peak, int(found.get("peak_memory_bytes") or 0))
    reason = reason or judge(found, self_test, limits)
    fields = {k: found[k] for k in Verdict.__dataclass_fields__ if found.get(k) is not None}
    return Verdict(**{**fields, "reason": reason, "duration_s": round(time.monotonic() - start, 3)})


def judge(found: dict[str, Any], self_test: SelfTest, limits: TrialConfig) -> str:
    """The first reason to refuse, or an empty string."""
    if "error" in found:
        return str(found["error"])
    if not found["finite"]:
        return "an output is NaN or infinite on the self-test vectors"
    error, agreement = found["max_abs_error"], found["agreement"]
    if error is None or error > self_test.max_abs_error:
        return f"output {found['worst_output']!r} differs by {error}, allowed {self_test.max_abs_error:g}"
    if agreement < self_test.min_agreement:
        return f"{agreement:.4f} of the samples agree, wanted {self_test.min_agreement:.4f}"
    latency = _stricter(self_test.max_latency_ms, limits.max_latency_ms)
    if latency is not None and found["latency_ms"] > latency:
        return f"median latency is {found['latency_ms']:.1f} ms, allowed {latency:g} ms"
    memory = _stricter(self_test.max_memory_bytes, limits.max_memory_bytes)
    if memory is not None and found["peak_memory_bytes"] > memory:
        return f"peak memory is {found['peak_memory_bytes']} bytes, allowed {memory}"
    return ""


def _watch(child: subprocess.Popen[bytes], request: bytes, timeout_s: float, memory: float | None) -> tuple[str, int]:
    """Feed the child and wait for it; kill it at a limit. Returns the reason for killing, and its peak memory."""
    assert child.stdin is not None
    try:
        with child.stdin as pipe:
            pipe.write(request)
    except BrokenPipeError:
        pass  # it died at once: its exit status tells
    deadline, peak = time.monotonic() + timeout_s, 0
    try:
        while child.poll() is None:
            peak = max(peak, peak_memory_bytes(child.pid))
            if memory is not None and peak > memory:
                return f"peak memory is over {int(memory)} bytes", peak
            if time.monotonic() > deadline:
                return f"the trial took longer than {timeout_s:g} s", peak
            time.sleep(_POLL_S)
        return "", peak
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def _answer(data: bytes, status: int, noise: str) -> dict[str, Any]:
    if status < 0:
        return {"error": f"the child was killed by signal {-status}"}
    try:
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found
    except ValueError:
        return {"error": f"the child left with status {status} and no answer: {noise.strip()}"}


def _stricter(one: float | None, other: float | None) -> float | None:
    return min((v for v in (one, other) if v is not None), default=None)


def _environment() -> dict[str, str]:
    home = str(Path(__file__).resolve().parents[1])
    paths = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ORT_DISABLE_TELEMETRY": "1"}
