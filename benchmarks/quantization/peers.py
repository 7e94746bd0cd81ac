"""Peers in environments of their own: made by ``pip`` under a folder, driven by the scripts in ``children``.

A child gets a JSON file (model, calibration, samples, target, options) and answers with ``target`` and a JSON file beside it:
{"seconds": of quantizing, "version": ...}, and ``answers.npy`` where onnxruntime cannot run what it made.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.quantization.cases import Case
from benchmarks.quantization.engines import Engine, Made
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from profiles.schema import Precision

ROOT = Path(__file__).resolve().parents[2]
CHILDREN = Path(__file__).parent / "children"
TIMEOUT_S = 900
INSTALL_TIMEOUT_S = 3600


class PeerFailed(Exception):
    """A peer could not be installed, or did not quantize the model: a result like any other."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Args:
    environment: its folder's name.
    requirements: one pip call each, in order.
    script: in ``children``.
    takes: "onnx", "tflite" (both written from our float hub) or "pt2" (nets trained here only: their weights, by torch.export).
    with_ours: our own packages and what they need are on the path before the environment's.
    """

    environment: str
    requirements: tuple[tuple[str, ...], ...]
    script: str
    takes: str
    options: Mapping[str, Any] = field(default_factory=dict)
    with_ours: bool = False


_NNCF = ("nncf", (("nncf==3.4.0", "onnx", "onnxruntime==1.31.1"),), "by_nncf.py", "onnx")
_INC = ("inc", (("torch==2.13.0",), ("neural-compressor[pt]==3.10", "accelerate", "torch==2.13.0")))
_AIMET = ("aimet", (("torch==2.13.0",), ("aimet-onnx==2.42.0", "torch==2.13.0")), "by_aimet.py", "onnx")
PEERS: dict[str, Peer] = {
    "NNCF, fast bias correction": Peer(*_NNCF, {"fast": True}),
    "NNCF, full bias correction": Peer(*_NNCF, {"fast": False}),
    "ai-edge-quantizer": Peer("aeq", (("ai-edge-quantizer==0.10.0",),), "by_aeq.py", "tflite"),
    "neural-compressor PT2E": Peer(*_INC, "by_inc.py", "pt2"),
    "edgewright --quantizer neural-compressor": Peer(
        *_INC, "by_seam.py", "onnx", {"quantizer": "neural-compressor"}, with_ours=True
    ),
    "AIMET": Peer(*_AIMET, {"adaround": 0}),
    "AIMET, CLE and AdaRound": Peer(*_AIMET, {"adaround": 500}),
}


def peer_engines(folder: Path) -> dict[str, Engine]:
    """By the name in the table. Environments are made on first use and kept."""
    return {name: _engine(peer, folder) for name, peer in PEERS.items()}


def _engine(peer: Peer, folder: Path) -> Engine:
    def run(case: Case, scratch: Path) -> Made:
        source = _source(peer, case, scratch)
        return _drive(environment(peer, folder), peer, case, source, scratch)

    return run


def environment(peer: Peer, folder: Path) -> Path:
    """The environment's python. Raises PeerFailed."""
    home = folder / peer.environment
    mark = home / f".complete-{hashlib.sha256(repr(peer.requirements).encode()).hexdigest()[:12]}"
    python = home / "bin" / "python"
    if mark.is_file():
        return python
    failed = home / mark.name.replace("complete", "failed")
    if failed.is_file():
        raise PeerFailed(failed.read_text("utf-8"))
    print(f"installing {peer.requirements} into {home}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    for step in peer.requirements:
        command = [str(python), "-m", "pip", "install", "--quiet", *step]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            failed.write_text(f"not installed: {(errors or ['pip failed'])[-1]}", "utf-8")
            raise PeerFailed(failed.read_text("utf-8"))
    mark.touch()
    return python


def _source(peer: Peer, case: Case, scratch: Path) -> Path:
    if peer.takes == "pt2":
        if case.program is None:
            raise PeerFailed("takes PyTorch nets only; this model is an ONNX or TFLite file")
        return case.program
    path = scratch / f"float.{peer.takes}"
    if peer.takes == "tflite":
        EXPORTERS.get("tflite").export(case.hub, path, ExportOptions(Precision.FP32))
    else:
        onnx.save(ir.to_proto(case.hub), path)
    return path


def _drive(python: Path, peer: Peer, case: Case, source: Path, scratch: Path) -> Made:
    np.savez(scratch / "data.npz", calibration=case.calibration, samples=case.samples)
    suffix = ".pt2" if peer.takes == "pt2" else f".{peer.takes}"
    job = {
        "model": str(source),
        "net": case.name,
        "data": str(scratch / "data.npz"),
        "input": str(case.hub.graph.inputs[0].name),
        "target": str(scratch / f"int8{suffix}"),
        "result": str(scratch / "result.json"),
        "answers": str(scratch / "answers.npy"),
        "options": dict(peer.options),
    }
    (scratch / "job.json").write_text(json.dumps(job), "utf-8")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    if peer.with_ours:
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    command = [str(python), str(CHILDREN / peer.script), str(scratch / "job.json")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=env, cwd=scratch)
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"no result after {TIMEOUT_S} s") from None
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        last = [line for line in done.stderr.strip().splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise PeerFailed(last[-1].strip())
    seconds = json.loads((scratch / "result.json").read_text("utf-8"))["seconds"]
    answers = np.load(job["answers"]) if Path(job["answers"]).is_file() else None
    return Made(Path(job["target"]), seconds, answers)
