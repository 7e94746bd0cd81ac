"""The report's plots as inline SVG. The same figures draw the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compiler.report.schema import ArtifactReport, Report
from compiler.verification.metrics import Accuracy
from profiles.schema import Precision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {
    "fp32": "#0072B2",
    "fp16": "#009E73",
    "int8": "#D55E00",
    "int16x8": "#CC79A7",
    "int8-dynamic": "#E69F00",
    "int8-weights": "#56B4E9",
    "int4-weights": "#000000",
}
# P. Tol, "Colour schemes" (SRON, 2021), the muted scheme.
LATER = (
    "#F0E442",
    "#999999",
    "#882255",
    "#44AA99",
    "#DDCC77",
    "#661100",
    "#AA4499",
    "#332288",
    "#117733",
    "#88CCEE",
    "#CC6677",
)
GREY = "#666666"
FLOOR = 1e-9  # where "no error" is drawn on a logarithmic axis


def colour_of(precision: str) -> str:
    """A precision's colour; those outside of Okabe and Ito's eight have one of Tol's."""
    others = sorted(p.value for p in Precision if p.value not in COLOURS)
    return COLOURS.get(precision) or LATER[others.index(precision) % len(LATER)]


def all_plots(report: Report) -> list[tuple[str, str]]:
    """(caption, SVG) of every plot that the report has figures for."""
    plots = []
    if any(a.accuracy for a in report.artifacts):
        plots.append(("Accuracy with its 95 % interval; the line is the source's", accuracy_plot(report)))
    plots.append(("Largest error against the source, relative to the output's range", error_plot(report.artifacts)))
    plots.append(("Size and latency on the build machine, one thread", cost_plot(report.artifacts)))
    sqnr = (report.quantization or {}).get("sqnr_db")
    if sqnr:
        plots.append(("Signal to quantization noise, node by node in execution order", sqnr_plot(sqnr)))
    return plots


def accuracy_plot(report: Report) -> str:
    shown = [a for a in report.artifacts if a.accuracy]
    figure, axes = _figure(len(shown))
    for y, artifact in enumerate(shown):
        value = artifact.accuracy
        assert isinstance(value, Accuracy)
        bars = [[100 * max(0.0, value.value - value.low)], [100 * max(0.0, value.high - value.value)]]
        axes.errorbar([100 * value.value], [y], xerr=bars, fmt="o", capsize=3, color=colour_of(artifact.precision))
    if report.source_accuracy:
        axes.axvline(100 * report.source_accuracy.value, color=GREY, linewidth=1, linestyle="--")
    _name_rows(axes, shown)
    axes.set_xlabel("top-1 accuracy (%)")
    return _svg(figure)


def error_plot(artifacts: Sequence[ArtifactReport]) -> str:
    figure, axes = _figure(len(artifacts))
    values = [max(a.parity.relative_error, FLOOR) if math.isfinite(a.parity.relative_error) else 1.0 for a in artifacts]
    axes.barh(range(len(artifacts)), values, color=[colour_of(a.precision) for a in artifacts], height=0.6)
    axes.set_xscale("log")
    axes.set_xlim(left=FLOOR)
    _name_rows(axes, artifacts)
    axes.set_xlabel("largest error / output range")
    return _svg(figure)


def cost_plot(artifacts: Sequence[ArtifactReport]) -> str:
    figure, axes = _figure(6)
    markers = {"onnx": "o", "tflite": "s", "coreml": "^"}
    for artifact in artifacts:
        size, latency = artifact.size_bytes / 1024, artifact.latency_ms
        label = f"{artifact.format} {artifact.precision}"
        marker, colour = markers[artifact.format], colour_of(artifact.precision)
        axes.plot([size], [latency], linestyle="none", markersize=8, marker=marker, color=colour, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("size (KiB)")
    axes.set_ylabel("latency (ms)")
    axes.legend(fontsize=7, ncol=2, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def sqnr_plot(sqnr_db: dict[str, float | None]) -> str:
    values = [(name, value) for name, value in sqnr_db.items() if value is not None]
    figure, axes = _figure(6)
    axes.plot(range(len(values)), [v for _, v in values], marker="o", markersize=3, color=COLOURS["int8"], linewidth=1)
    if values:
        worst = min(range(len(values)), key=lambda i: values[i][1])
        axes.annotate(
            values[worst][0],
            (worst, values[worst][1]),
            fontsize=7,
            xytext=(0, -10),
            textcoords="offset points",
            ha="center",
        )
    axes.set_xlabel("node")
    axes.set_ylabel("SQNR (dB)")
    return _svg(figure)


def _figure(rows: int) -> tuple[Figure, Axes]:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.hashsalt": "edgewright", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    )
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.32 * rows), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", linewidth=0.4, alpha=0.5)
    return figure, axes


def _name_rows(axes: Any, artifacts: Sequence[ArtifactReport]) -> None:
    axes.set_yticks(range(len(artifacts)), [f"{a.format} {a.precision}" for a in artifacts])
    axes.invert_yaxis()


def _svg(figure: Figure) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
