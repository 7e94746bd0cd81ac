"""The quality report that travels with a release: what a build measured about its artifacts, whichever machine it ran on.

Latency, memory, host and file names differ from run to run and from machine to machine; they are in report.json and stay at home,
so that equal builds make equal releases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from compiler.report.schema import ArtifactReport, Report
from runtimes.artifact.canonical import canonical_json

SCHEMA = "edgewright.quality/1"
_LOCAL = frozenset({"latency_ms", "peak_memory_bytes"})
# Options that say where things are on this machine; what they held is known by digest.
_PLACES = frozenset({"source", "output", "cache_dir", "force", "calibration", "evaluate", "preprocess", "previous"})


def quality_document(report: Report) -> bytes:
    """Canonical JSON: accuracy of the source, and of each artifact parity, accuracy, flips, refusals and gates."""
    return canonical_json(
        {
            "schema": SCHEMA,
            "model": report.model,
            "truth": report.truth,
            "source_accuracy": asdict(report.source_accuracy) if report.source_accuracy is not None else None,
            "artifacts": [_artifact(artifact) for artifact in report.artifacts],
            "agreement": [asdict(pair) for pair in report.agreement],
            "warnings": list(report.warnings),
        }
    )


def _artifact(artifact: ArtifactReport) -> dict[str, Any]:
    return {key: _plain(value) for key, value in asdict(artifact).items() if key not in _LOCAL}


def _plain(value: Any) -> Any:
    """Numbers that JSON does not know become None, as in report.json."""
    if isinstance(value, float) and value - value != 0:  # NaN and infinities
        return None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def configuration(request: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a build that shape its artifacts, for the provenance."""
    return {key: _plain(value) for key, value in request.items() if key not in _PLACES and value not in (None, [], ())}
