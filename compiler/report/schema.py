"""report.json: every figure of a build. docs/formats/report.md describes it for readers who parse it.

Infinite figures (an SNR of equal tensors) and figures that were not measured are null.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from compiler.errors import Refusal
from compiler.gates import Gate
from compiler.previous.predict import Update
from compiler.verification.evidence import Verification
from compiler.verification.integer_kernels import Kernels
from compiler.verification.metrics import Accuracy, Flips, Parity, StepAgreement

SCHEMA = "edgewright.report/1"


@dataclass(frozen=True, slots=True)
class ArtifactReport:
    """One artifact: what it is, what running it showed.

    ``parity`` compares with the source; ``lowering`` with the hub that the artifact was lowered from, and differs from it only
    for pruned models and where only weights are quantized. ``evidence`` is the kind of execution (runtimes.session.Evidence).
    ``latency_ms`` and ``peak_memory_bytes`` are the build machine's. ``path`` is relative to the report. ``kernels``: what
    onnxruntime runs in integers, for .onnx files with integers. ``verifications``: what `edgewright verify` found later, on this
    or another machine.
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
    verifications: tuple[Verification, ...] = ()
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
        document |= {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        document["gates"] = plain(self.gates)
        document["pareto"] = [plain(choice) for choice in choices(self.artifacts)]
        return document


@dataclass(frozen=True, slots=True)
class Choice:
    """One artifact among those of its format. ``best``: none of them is as small, as fast and as close, and better in one."""

    path: str
    format: str
    size_bytes: int
    latency_ms: float
    snr_db: float
    accuracy: float | None
    best: bool


def choices(artifacts: Sequence[ArtifactReport]) -> list[Choice]:
    """The Pareto table that every report ends with."""

    def figures(one: ArtifactReport) -> tuple[float, float, float]:
        return one.size_bytes, one.latency_ms, -one.parity.snr_db

    def beaten(one: ArtifactReport) -> bool:
        rivals = [figures(other) for other in artifacts if other.format == one.format]
        own = figures(one)
        return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in rivals)

    return [
        Choice(
            one.path,
            one.format,
            one.size_bytes,
            one.latency_ms,
            one.parity.snr_db,
            one.accuracy.value if one.accuracy else None,
            not beaten(one),
        )
        for one in artifacts
    ]


def plain(value: Any) -> Any:
    """JSON's types only. Non-finite floats become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Flips):
            fields["drop_points"] = value.drop_points
        return fields
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item"):  # a numpy scalar
        return plain(value.item())
    return value
