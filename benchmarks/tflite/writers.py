"""Who writes .tflite files: we, and the peers in an environment of their own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from benchmarks.tflite.nets import Net

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
OURS = ("edgewright", "edgewright nhwc")


@dataclass(frozen=True, slots=True)
class Written:
    """A file, or why there is none. ``channels_last``: its input is [N, H, W, C]."""

    writer: str
    path: Path | None
    channels_last: bool
    seconds: float
    failure: str = ""


def write(writer: str, net: Net, *, quantized: bool, peers: Path | None) -> Written:
    """The file of ``writer`` for ``net``, made unless it already is in the net's folder."""
    path = net.folder / f"{writer.replace(' ', '_')}.{'int8' if quantized else 'float'}.tflite"
    last = writer in ("edgewright nhwc", "onnx2tf")
    start = time.perf_counter()
    if path.exists():
        return Written(writer, path, last, 0.0)
    failure = WRITERS[writer](net, path, quantized, peers)
    seconds = time.perf_counter() - start
    return Written(writer, path if path.exists() and not failure else None, last, seconds, failure)


def _ours(net: Net, path: Path, quantized: bool, peers: Path | None, *, turned: bool = False) -> str:
    from compiler.exporters.base import ExportOptions
    from compiler.exporters.tflite import EXPORTER
    from compiler.io_layout import channels_last
    from profiles.schema import IntegerIO, Precision

    model = ir.load(net.quantized if quantized else net.hub)
    if turned:
        model = channels_last(model).model
    # ai-edge-quantizer's files have integer inputs and outputs, onnx2tf's float ones: ours are like the peer's.
    ports = IntegerIO.INT8 if quantized and not turned else None
    precision = Precision.INT8 if quantized else Precision.FP32
    EXPORTER.export(model, path, ExportOptions(precision, integer_io=ports, float_islands=True))
    return ""


def _ours_turned(net: Net, path: Path, quantized: bool, peers: Path | None) -> str:
    return _ours(net, path, quantized, peers, turned=True)


def _onnx2tf(net: Net, path: Path, quantized: bool, peers: Path | None) -> str:
    outputs = [path.with_name("onnx2tf.float.tflite"), *([path] if quantized else [])]
    return _child(peers, "onnx2tf_peer.py", net.hub, net.data, *outputs)


def _litert_torch(net: Net, path: Path, quantized: bool, peers: Path | None) -> str:
    outputs = [path.with_name("litert-torch.float.tflite"), *([path] if quantized else [])]
    return _child(peers, "litert_torch_peer.py", net.name, net.size, net.data, *outputs)


def _child(peers: Path | None, script: str, *arguments: object) -> str:
    """Run a script in the peers' environment. Returns the last line of what went wrong, or nothing."""
    if peers is None:
        return "no --peers-python"
    command = [str(peers), str(ROOT / "benchmarks" / "tflite" / "scripts" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, env=environment, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return f"no result after {TIMEOUT_S} s"
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return "" if done.returncode == 0 else lines[-1][:160] if lines else f"exit code {done.returncode}"


Writer = Callable[[Net, Path, bool, Path | None], str]
WRITERS: dict[str, Writer] = {
    "edgewright": _ours,
    "edgewright nhwc": _ours_turned,
    "onnx2tf": _onnx2tf,
    "litert-torch": _litert_torch,
}
