"""The report's plots of artifacts: accuracy, changed answers, error, cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from compiler.report.evidence_plots import evidence_plots
from compiler.report.figure import COLOURS, GREY, Plot, colour_of, figure, name_rows, plot
from compiler.report.schema import ArtifactReport, Report
from compiler.verification.metrics import Accuracy, Flips

FLOOR = 1e-9  # where "no error" is drawn on a logarithmic axis
MARKERS = {"onnx": "o", "tflite": "s", "coreml": "^"}


def all_plots(report: Report) -> dict[str, list[Plot]]:
    """By section, "artifacts" and "quantization": every plot that the report has figures for."""
    shown = [a for a in report.artifacts if a.accuracy]
    found = [accuracy_plot(report, shown)] if shown else []
    flipped = [a for a in report.artifacts if a.flips]
    found += [flips_plot(flipped)] if flipped else []
    found += [error_plot(report.artifacts), cost_plot(report.artifacts)]
    return {"artifacts": found, "quantization": evidence_plots(report.quantization or {})}


def accuracy_plot(report: Report, shown: Sequence[ArtifactReport]) -> Plot:
    made, axes = figure(len(shown))
    for y, artifact in enumerate(shown):
        value = artifact.accuracy
        assert isinstance(value, Accuracy)
        bars = [[100 * max(0.0, value.value - value.low)], [100 * max(0.0, value.high - value.value)]]
        axes.errorbar([100 * value.value], [y], xerr=bars, fmt="o", capsize=3, color=colour_of(artifact.precision))
    about = "; ".join(f"{_title(a)} {100 * a.accuracy.value:.1f} %" for a in shown if a.accuracy)
    if report.source_accuracy:
        axes.axvline(100 * report.source_accuracy.value, color=GREY, linewidth=1, linestyle="--")
        about = f"source {100 * report.source_accuracy.value:.1f} %; {about}"
    name_rows(axes, [_title(a) for a in shown])
    axes.set_xlabel("top-1 accuracy (%)")
    return plot(made, "Accuracy with its 95 % interval; the dashed line is the source", f"Accuracy: {about}")


def flips_plot(shown: Sequence[ArtifactReport]) -> Plot:
    """Answers that became wrong to the left, that became right to the right, with McNemar's p."""
    made, axes = figure(len(shown))
    furthest = max([1, *(max(a.flips.lost, a.flips.gained) for a in shown if a.flips)])
    for y, artifact in enumerate(shown):
        flips = artifact.flips
        assert isinstance(flips, Flips)
        axes.barh([y], [-flips.lost], color=COLOURS["int8"], height=0.55)
        axes.barh([y], [flips.gained], color=COLOURS["fp16"], height=0.55)
        axes.text(1.25 * furthest, y, p_value(flips.p_value), va="center", fontsize=8)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_xlim(-1.2 * furthest, 1.9 * furthest)
    ticks = sorted({-furthest, -(furthest // 2), 0, furthest // 2, furthest})
    axes.set_xticks(ticks, [str(abs(t)) for t in ticks])
    name_rows(axes, [_title(a) for a in shown])
    axes.set_xlabel("answers lost (left), gained (right)")
    said = (
        f"{_title(a)} lost {a.flips.lost}, gained {a.flips.gained}, {p_value(a.flips.p_value)}"
        for a in shown
        if a.flips
    )
    return plot(made, "Answers that changed against the source, with McNemar's test", "; ".join(said))


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def error_plot(artifacts: Sequence[ArtifactReport]) -> Plot:
    made, axes = figure(len(artifacts))
    values = [max(a.parity.relative_error, FLOOR) if math.isfinite(a.parity.relative_error) else 1.0 for a in artifacts]
    axes.barh(range(len(artifacts)), values, color=[colour_of(a.precision) for a in artifacts], height=0.6)
    axes.set_xscale("log")
    axes.set_xlim(left=FLOOR, right=max(1.0, *values))
    name_rows(axes, [_title(a) for a in artifacts])
    axes.set_xlabel("largest error / output range")
    about = "; ".join(f"{_title(a)} {v:.1e}" for a, v in zip(artifacts, values, strict=True))
    return plot(made, "Largest error against the source, relative to the output's range", f"Errors: {about}")


def cost_plot(artifacts: Sequence[ArtifactReport]) -> Plot:
    made, axes = figure(7)
    for artifact in artifacts:
        size, latency = artifact.size_bytes / 1024, artifact.latency_ms
        marker, colour = MARKERS[artifact.format], colour_of(artifact.precision)
        axes.plot(
            [size], [latency], linestyle="none", markersize=8, marker=marker, color=colour, label=_title(artifact)
        )
    axes.set_xlim(left=0)
    axes.set_yscale("log")
    for one in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        one(lambda value, _: f"{value:.3g}")
    axes.set_xlabel("size (KiB)")
    axes.set_ylabel("latency (ms)")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    about = "; ".join(f"{_title(a)} {a.size_bytes / 1024:.0f} KiB, {a.latency_ms:.2f} ms" for a in artifacts)
    return plot(made, "Size and latency on the build machine, one thread", about)


def _title(artifact: ArtifactReport) -> str:
    return f"{artifact.format} {artifact.precision}"
