"""report.json: every figure of a build. docs/formats/report.md describes it for readers who parse it.

Infinite figures (an SNR of equal tensors) and figures that were not measured are null.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from compiler.errors import Refusal
from compiler.gates import Gate
from compiler.previous.predict import Update
from compiler.verification.integer_kernels import Kernels
from compiler.verification.metrics import Accuracy, Flips, Parity, StepAgreement

SCHEMA = "edgewright.report/1"


@dataclass(frozen=True, slots=True)
class ArtifactReport:
    """One artifact: what it is, what running it showed.

    ``parity`` compares with the source; ``lowering`` with the hub that the artifact was lowered from, and differs from it only
    for pruned models and where only weights are quantized. ``evidence`` is the kind of execution (runtimes.session.Evidence).
    ``latency_ms`` and ``peak_memory_bytes`` are the build machine's. ``path`` is relative to the report. ``kernels``: what
    onnxruntime runs in integers, for .onnx files with integers.
    """

    path: str
    format: str
    precision: str
    profiles: tuple[str, ...]
    runtime: str
    runtime_version: str
    evidence: str
    size_bytes: int
    sha256: str
    parity: Parity
    lowering: Parity
    accuracy: Accuracy | None
    flips: Flips | None
    latency_ms: float
    peak_memory_bytes: int
    notes: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    gates: tuple[Gate, ...] = ()
    kernels: Kernels | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One build. ``ok`` is what the exit code says. ``quantization`` is INT8's section, ``schemes`` the other precisions'.
    ``updates``: patches from the previous release, where one was named."""

    model: str
    source: dict[str, str]
    tools: dict[str, str]
    host: dict[str, Any]
    request: dict[str, Any]
    hub: dict[str, Any]
    data: dict[str, Any]
    truth: str
    source_accuracy: Accuracy | None
    prune: dict[str, Any] | None
    quantization: dict[str, Any] | None
    artifacts: tuple[ArtifactReport, ...]
    agreement: tuple[StepAgreement, ...]
    warnings: tuple[str, ...] = ()
    stages: dict[str, float] = field(default_factory=dict)
    schemes: dict[str, Any] = field(default_factory=dict)
    updates: tuple[Update, ...] = ()

    @property
    def gates(self) -> tuple[Gate, ...]:
        return tuple(gate for artifact in self.artifacts for gate in artifact.gates)

    @property
    def ok(self) -> bool:
        return all(gate.ok for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        """The document that report.json holds."""
        document: dict[str, Any] = {"schema": SCHEMA, "ok": self.ok}
        document |= {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        document["gates"] = _plain(self.gates)
        return document


def _plain(value: Any) -> Any:
    """JSON's types only. Non-finite floats become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Flips):
            plain["drop_points"] = value.drop_points
        return plain
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item"):  # a numpy scalar
        return _plain(value.item())
    return value
