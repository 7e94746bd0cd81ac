"""How long writing a file takes and how much memory: in a child process, the hub loaded first."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Writing:
    """``allocated``: peak of what Python and numpy allocated; ``resident``: growth of the process's peak resident set."""

    seconds: float
    allocated_bytes: int
    resident_bytes: int
    file_bytes: int


def measure(source: Path, *, quantized: bool) -> Writing:
    """Write ``source`` (an ONNX file of the hub) twice in a new process each: once timed, once traced, which is slower."""
    timed, traced = (_child(source, quantized, trace) for trace in ("", "trace"))
    return Writing(timed["seconds"], traced["allocated_bytes"], timed["resident_bytes"], timed["file_bytes"])


def _child(source: Path, quantized: bool, trace: str) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.tflite.writing", str(source), "int8" if quantized else "fp32", trace]
    found: dict[str, int] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def _main(source: Path, precision: str, trace: bool) -> Writing:
    import tempfile

    import onnx_ir as ir

    from compiler.exporters.base import ExportOptions
    from compiler.exporters.tflite import EXPORTER
    from compiler.exporters.tflite.writer import GraphWriter
    from profiles.schema import Precision

    model = ir.load(source)
    GraphWriter()  # imports the schema, which is not writing
    options = ExportOptions(Precision(precision))
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if trace:
            tracemalloc.start()
        start = time.perf_counter()
        path = EXPORTER.export(model, Path(folder) / "m.tflite", options).path
        seconds = time.perf_counter() - start
        allocated = tracemalloc.get_traced_memory()[1] if trace else 0
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return Writing(seconds, allocated, grown << 10, path.stat().st_size)


if __name__ == "__main__":
    print(json.dumps(asdict(_main(Path(sys.argv[1]), sys.argv[2], len(sys.argv) > 3 and bool(sys.argv[3])))))
