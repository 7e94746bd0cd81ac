"""The report as a few lines for a person at a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.report.schema import ArtifactReport, Report
from compiler.verification.metrics import StepAgreement
from profiles.units import format_bytes


def summary(report: Report, output: Path) -> str:
    """A table of artifacts, the agreement of the INT8 ones, what each failed gate said, and where everything lies."""
    header = ("artifact", "runtime", "size", "max error", "agreement", "accuracy", "flips", "latency", "gates")
    rows = [header, *(_row(a) for a in report.artifacts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for pair in report.agreement:
        lines.append(
            f"{_kind(pair)} agreement: {pair.first} and {pair.second}: equal on {pair.share_equal:.2%} of outputs, "
            f"within one step on {pair.share_within_one:.2%}, at most {pair.max_steps:g} steps apart"
        )
    lines += [
        f"update from the previous release: {u.artifact}: {format_bytes(u.patch_bytes)} to send of {format_bytes(u.full_bytes)}"
        for u in report.updates
    ]
    lines += _int8(report.quantization or {})
    lines += ((report.quantization or {}).get("sticky") or {}).get("advice", [])
    lines += [f"gate {g.name} failed for {g.artifact}: {g.reason}" for g in report.gates if not g.ok]
    verdict = (
        "All gates passed."
        if report.ok
        else "A gate failed: the artifacts lie in `rejected`, nothing can be published."
    )
    return "\n".join([*lines, verdict, f"Report: {output / 'report.html'}"])


def _int8(section: dict[str, Any]) -> list[str]:
    """Where INT8 loses most, where it begins to go wrong, and what rescue brought."""
    lines = []
    if section.get("worst_node"):
        lines.append(f"int8: most is lost at {section['worst_node']}")
    if section.get("first_below_20_db"):
        lines.append(f"int8: the first activation below 20 dB is {section['first_below_20_db']}")
    kept = [a for a in section.get("ladder", []) if a["kept"]]
    if len(kept) > 1:
        steps = ", ".join(f"{a['rung']} {_db(a['sqnr_db'])}" for a in kept)
        lines.append(f"int8 on {section['held_out_samples']} held-out samples: {steps}")
    return lines


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def _kind(pair: StepAgreement) -> str:
    return "int8" if pair.codes_per_step == 1 else f"int16x8 (in steps of {pair.codes_per_step} codes)"


def _row(artifact: ArtifactReport) -> tuple[str, ...]:
    accuracy = artifact.accuracy
    return (
        artifact.path,
        artifact.runtime if artifact.evidence == "executed" else f"{artifact.runtime} ({artifact.evidence})",
        format_bytes(artifact.size_bytes),
        f"{artifact.parity.relative_error:.1e}",
        "-" if artifact.parity.agreement is None else f"{artifact.parity.agreement:.2%}",
        "-" if accuracy is None else f"{accuracy.value:.2%} [{accuracy.low:.1%}, {accuracy.high:.1%}]",
        "-"
        if artifact.flips is None
        else f"-{artifact.flips.lost} +{artifact.flips.gained} (p {artifact.flips.p_value:.2f})",
        f"{artifact.latency_ms:.2f} ms",
        "ok" if all(g.ok for g in artifact.gates) else "FAILED",
    )
