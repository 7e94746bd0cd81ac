"""Latency distributions as one SVG; the same figures draw the same bytes."""

from __future__ import annotations

import io
from typing import Any


def latency_plot(document: dict[str, Any]) -> str:
    """Percentiles with their intervals, one row per artifact, on a logarithmic axis. Returns SVG text."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "edgewright", "svg.fonttype": "none", "font.size": 9})
    results = document["results"]
    figure, axes = plt.subplots(figsize=(7, 1 + 0.35 * len(results)), layout="constrained")
    for marker, name, colour in (("o", "p50", "#0072B2"), ("s", "p90", "#009E73"), ("^", "p99", "#D55E00")):
        found = [r["latency_ns"][name] for r in results]
        for row, entry in enumerate(found):
            if entry["low"] is not None and entry["high"] is not None:
                axes.plot([entry["low"] / 1e6, entry["high"] / 1e6], [row, row], color=colour, linewidth=2, alpha=0.5)
        values = [entry["value"] / 1e6 for entry in found]
        axes.plot(values, range(len(results)), marker, color=colour, label=name, linestyle="none")
    axes.set_xscale("log")
    axes.set_yticks(range(len(results)), [r["artifact"] for r in results])
    axes.invert_yaxis()
    axes.set_xlabel("latency (ms)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", linewidth=0.4, alpha=0.5)
    axes.legend(frameon=False, ncol=3, loc="upper right", bbox_to_anchor=(1.0, 1.12 + 0.3 / (1 + len(results))))
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return buffer.getvalue()
