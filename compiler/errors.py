"""Errors of the build side, split by what the caller can do.

CompilerError
├── SourceError           the source is missing, damaged or not loadable (exit 3)
├── UnsupportedModel      operators, types or shapes that cannot be expressed; lists all of them (exit 3)
├── DataError             calibration or evaluation data is bad (exit 2)
├── ExtraMissing          an optional package is not installed (exit 4)
├── OutputExists          the destination is not empty (exit 2)
├── GateFailed            the build finished and a gate said no (exit 1)
└── PublishError          keys, repository, release (exit 5 when trust is at stake)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from profiles.errors import EdgewrightError, ExitCode


class CompilerError(EdgewrightError):
    pass


class SourceError(CompilerError):
    exit_code = ExitCode.UNSUPPORTED


@dataclass(frozen=True, slots=True)
class Refusal:
    """One node, or one model-wide property, that a stage cannot handle, with the reason and the way out.

    ``signature``: the node's opset, types and shapes, where the stage knows them.
    """

    node: str
    op_type: str
    reason: str
    where: str  # the stage that refuses: "tflite", "coreml", "prune", ...
    remedy: str = ""
    signature: str = ""

    def __str__(self) -> str:
        way_out = f" {self.remedy}" if self.remedy else ""
        signature = f" ({self.signature})" if self.signature else ""
        return f"[{self.where}] {self.op_type} {self.node!r}{signature}: {self.reason}.{way_out}"


class UnsupportedModel(CompilerError):
    """All refusals at once, before any work is wasted."""

    exit_code = ExitCode.UNSUPPORTED

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        lines = "\n".join(f"  {refusal}" for refusal in refusals)
        super().__init__(
            f"{len(refusals)} part(s) of the model cannot be expressed:\n{lines}",
            remedy="Replace the named operators in the source, or leave out the format that refuses them with --format.",
        )
        self.refusals = tuple(refusals)


class DataError(CompilerError):
    exit_code = ExitCode.USAGE


class ExtraMissing(CompilerError):
    exit_code = ExitCode.MISSING


class OutputExists(CompilerError):
    exit_code = ExitCode.USAGE


class GateFailed(CompilerError):
    exit_code = ExitCode.GATE


class PublishError(CompilerError):
    exit_code = ExitCode.USAGE


class PublishTrustError(PublishError):
    exit_code = ExitCode.TRUST
