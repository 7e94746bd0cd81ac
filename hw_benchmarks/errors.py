"""Errors of measuring.

BenchError
├── TargetUnreachable     the target does not answer, or lacks python3 or the runtime (exit 4)
├── MeasurementFailed     the artifact failed on the target (exit 3)
└── ResultsMismatch       a results file is damaged, or two have nothing in common (exit 2)
"""

from __future__ import annotations

from profiles.errors import EdgewrightError, ExitCode


class BenchError(EdgewrightError):
    pass


class TargetUnreachable(BenchError):
    exit_code = ExitCode.MISSING


class MeasurementFailed(BenchError):
    exit_code = ExitCode.UNSUPPORTED


class ResultsMismatch(BenchError):
    exit_code = ExitCode.USAGE
