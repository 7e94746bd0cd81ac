"""What runs inside the verification child: one artifact, executed on every sample, timed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from compiler.verification.integer_kernels import Kernels, inspect_kernels
from runtimes.errors import ModelLoadError
from runtimes.memory import peak_memory_bytes
from runtimes.registry import open_session
from runtimes.session import Array, RuntimeInfo, SessionOptions, TensorSpec, run_dataset

WARM_UP_RUNS = 3
TIMED_RUNS = 20
TIMED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Execution:
    """Outputs of all samples, and what running cost on the machine that built the artifact.

    ``latency_ns`` is the median of single runs with one thread. ``peak_memory_bytes`` is the child's high-water mark, the Python
    interpreter and the runtime included. ``kernels``: where asked for, and onnxruntime could say.
    """

    outputs: dict[str, Array]
    inputs: tuple[TensorSpec, ...]
    runtime: RuntimeInfo
    latency_ns: int
    peak_memory_bytes: int
    kernels: Kernels | None = None


def execute(
    path: str,
    runtime: str | None,
    feeds: dict[str, Array],
    batch: int | tuple[int, ...] | None = None,
    provider: str | None = None,
    kernels: bool = False,
) -> Execution:
    """Run ``feeds`` (samples on axis 0) through the artifact at ``path``; then time single runs.

    ``batch``: of an artifact that takes any; several are used in turn, and the first is timed.
    ``kernels``: also read which integer kernels onnxruntime engages; the artifact is an .onnx file.
    """
    with open_session(Path(path), runtime=runtime, options=SessionOptions(threads=1, provider=provider)) as session:
        outputs = run_dataset(session, feeds, batch)
        once = batch[0] if isinstance(batch, tuple) else batch or 1
        single = {s.name: feeds[s.name][: s.shape[0] or once] if s.shape else feeds[s.name] for s in session.inputs}
        for _ in range(WARM_UP_RUNS):
            session.run(single)
        times: list[int] = []
        deadline = time.perf_counter() + TIMED_SECONDS
        while len(times) < TIMED_RUNS and (not times or time.perf_counter() < deadline):
            start = time.perf_counter_ns()
            session.run(single)
            times.append(time.perf_counter_ns() - start)
        return Execution(
            outputs=outputs,
            inputs=session.inputs,
            runtime=session.runtime,
            latency_ns=int(statistics.median(times)),
            peak_memory_bytes=peak_memory_bytes(),  # before the second session that follows
            kernels=_kernels(Path(path)) if kernels else None,
        )


def _kernels(path: Path) -> Kernels | None:
    try:
        return inspect_kernels(path)
    except ModelLoadError:  # it ran: that its optimised graph cannot be written is no reason to refuse it
        return None
