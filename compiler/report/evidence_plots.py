"""The report's plots of INT8's section: noise by depth, the rungs of the ladder, what it cost, who is sensitive, ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from compiler.report.figure import COLOURS, GREY, MAIN, SECOND, Plot, figure, name_rows, plot, short

COLLAPSE_DB: Final = 20.0  # a tenth of the signal is noise
MOST_ROWS: Final = 16
MOST_PANELS: Final = 9

Section = Mapping[str, Any]


def evidence_plots(section: Section) -> list[Plot]:
    """Every plot that the section has figures for."""
    found = []
    depth = [(name, db) for name, db in section.get("sqnr_db", {}).items() if db is not None]
    if depth:
        found.append(depth_plot(depth))
    ladder = [a for a in section.get("ladder", ()) if a["sqnr_db"] is not None]
    if ladder:
        found += [rungs_plot(ladder), pareto_plot(ladder)]
    sensitivity = [s for s in section.get("sensitivity") or () if s.get("gain_db") is not None]
    if sensitivity:
        found.append(sensitivity_plot(sensitivity))
    counted = [a for a in section.get("activations") or () if a.get("counts")]
    if counted:
        found.append(ranges_plot(counted))
    return found


def depth_plot(depth: Sequence[tuple[str, float]]) -> Plot:
    """Signal to noise of every int8 activation in execution order; the first that falls below COLLAPSE_DB is named."""
    made, axes = figure(6)
    values = [db for _, db in depth]
    axes.axhline(COLLAPSE_DB, color=GREY, linewidth=1, linestyle="--")
    axes.plot(range(len(values)), values, marker="o", markersize=4, color=MAIN, linewidth=1.2)
    worst = min(range(len(values)), key=values.__getitem__)
    first = next((i for i, db in enumerate(values) if db < COLLAPSE_DB), None)
    marked = {worst: "lowest"} | ({first: f"first below {COLLAPSE_DB:.0f} dB"} if first is not None else {})
    for index, why in marked.items():
        side = "right" if index > len(values) / 2 else "left"
        axes.annotate(
            f"{short(depth[index][0])}\n{why}: {values[index]:.1f} dB",
            (index, values[index]),
            fontsize=8,
            xytext=(-10 if side == "right" else 10, -10),
            textcoords="offset points",
            ha=side,
            va="top",
        )
    room = 0.25 * max(10.0, max(values) - min(values))
    axes.set_ylim(min(0.0, min(values) - room) if min(values) < COLLAPSE_DB else min(values) - room, max(values) + 3)
    axes.set_xlabel("int8 activations in execution order")
    axes.set_ylabel("SQNR (dB)")
    axes.grid(True, axis="y", linewidth=0.4, alpha=0.5, color=GREY)
    ends = f"from {values[0]:.1f} dB at {depth[0][0]} to {values[-1]:.1f} dB at {depth[-1][0]}"
    about = f"Signal to noise {ends}, lowest {values[worst]:.1f} dB at {depth[worst][0]}"
    return plot(made, "Signal to quantization noise by depth; below the dashed line a tenth is noise", about)


def rungs_plot(ladder: Sequence[Section]) -> Plot:
    """Before and after each rung: from the best so far to the best that it reached. Every attempt stands in the table below it."""
    shown = [max(tried, key=lambda a: (a["kept"], a["sqnr_db"])) for tried in _by_rung(ladder)]
    made, axes = figure(len(shown))
    best = shown[0]["sqnr_db"]
    for y, attempt in enumerate(shown):
        reached, kept = attempt["sqnr_db"], attempt["kept"]
        colour = COLOURS["fp16"] if kept else GREY
        axes.plot([best, reached], [y, y], color=colour, linewidth=1.5, solid_capstyle="butt")
        axes.plot([best], [y], marker="|", markersize=9, color=colour)
        axes.plot([reached], [y], marker="o", markersize=6, color=colour, markerfacecolor=colour if kept else "none")
        best = reached if kept else best
    name_rows(axes, [_rung(a) for a in shown])
    axes.set_xlabel("SQNR on held-out samples (dB)")
    said = "; ".join(f"{_rung(a)} {a['sqnr_db']:.1f} dB{', kept' if a['kept'] else ''}" for a in shown)
    return plot(made, "Rung by rung: from the best so far (bar) to what was reached (dot; filled where kept)", said)


def _by_rung(ladder: Sequence[Section]) -> list[list[Section]]:
    """Attempts one after another of the same rung."""
    return [list(tried) for _, tried in groupby(ladder, key=itemgetter("rung"))]


def _rung(attempt: Section) -> str:
    detail = attempt["detail"]
    return attempt["rung"] if attempt["rung"] == "start" else short(f"{attempt['rung']}: {detail}", 52)


def pareto_plot(ladder: Sequence[Section]) -> Plot:
    """Bytes of the constants against signal to noise; the front connects what nothing else beats in both."""
    made, axes = figure(6)
    front = sorted((a["weight_bytes"] / 1024, a["sqnr_db"]) for a in ladder if a.get("pareto"))
    others = [(a["weight_bytes"] / 1024, a["sqnr_db"]) for a in ladder if not a.get("pareto")]
    if others:
        axes.plot(
            *zip(*others, strict=True), linestyle="none", marker="o", markersize=5, color=GREY, label="beaten in both"
        )
    if front:
        axes.plot(*zip(*front, strict=True), marker="o", markersize=6, color=SECOND, linewidth=1, label="Pareto front")
    kept = [a for a in ladder if a["kept"]][-1:]
    for one in kept:
        at = (one["weight_bytes"] / 1024, one["sqnr_db"])
        axes.plot(*at, marker="o", markersize=12, markerfacecolor="none", color=MAIN, linestyle="none", label="chosen")
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("weights and biases (KiB)")
    axes.set_ylabel("SQNR (dB)")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return plot(made, "What accuracy costs: bytes against SQNR", f"{len(front)} of {len(ladder)} attempts on the front")


def sensitivity_plot(sensitivity: Sequence[Section]) -> Plot:
    """What each node alone would bring if it were spared int8."""
    rows = sorted(sensitivity, key=lambda s: -float(s["gain_db"]))[:MOST_ROWS]
    made, axes = figure(len(rows))
    axes.barh(range(len(rows)), [s["gain_db"] for s in rows], color=MAIN, height=0.6)
    name_rows(axes, [f"{short(s['node'])} ({s.get('instead', 'float32')})" for s in rows])
    axes.set_xlabel("SQNR gained if this node alone is spared int8 (dB)")
    about = "; ".join(f"{s['node']} {s['gain_db']:+.2f} dB" for s in rows)
    return plot(made, f"The {len(rows)} most sensitive of {len(sensitivity)} measured nodes", about)


def ranges_plot(activations: Sequence[Section]) -> Plot:
    """Where the values of the noisiest activations lie (bars) and what their codes can express (between the lines)."""
    import matplotlib.pyplot as plt

    worst = sorted(activations, key=lambda a: math.inf if a["sqnr_db"] is None else a["sqnr_db"])[:MOST_PANELS]
    figure(1)  # sets the style
    plt.close()
    columns = min(3, len(worst))
    rows = -(-len(worst) // columns)
    made, panels = plt.subplots(rows, columns, figsize=(7, 1.5 * rows + 0.4), layout="constrained", squeeze=False)
    for panel, one in zip(panels.flat, worst, strict=False):
        _panel(panel, short(one["node"]), one)
    for panel in list(panels.flat)[len(worst) :]:
        panel.set_visible(False)
    about = "; ".join(f"{a['node']}: codes from {a['low']:.3g} to {a['high']:.3g}" for a in worst)
    return plot(made, "Values of the noisiest activations, on a logarithmic scale; lines: what the codes reach", about)


def _panel(panel: Any, title: str, one: Section) -> None:
    counts, start = one["counts"], one["observed_low"]
    width = (one["observed_high"] - start) / len(counts)
    panel.bar([start + width * (i + 0.5) for i in range(len(counts))], counts, width=width, color=MAIN, log=True)
    for edge in (one["low"], one["high"]):
        panel.axvline(edge, color=SECOND, linewidth=1.2)
    panel.set_title(title, fontsize=7)
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_yticks([])
