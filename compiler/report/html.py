"""report.html: one self-contained page, readable without a network and without scripts."""

from __future__ import annotations

import math
from pathlib import Path

from compiler.report.plots import all_plots, p_value
from compiler.report.schema import Report
from profiles.units import format_bytes

TEMPLATE = Path(__file__).parent / "report.html.j2"


def render(report: Report) -> str:
    """Render the page; everything from the model is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"bytes": format_bytes, "p_value": p_value, "error": _error}
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(report=report, plots=all_plots(report), best=_best(report))


def _error(value: float) -> str:
    """A relative error as people read it."""
    if not math.isfinite(value):
        return "not finite"
    return "none" if value == 0 else f"{100 * value:.2g} %" if value >= 1e-4 else f"{value:.0e}"


def _best(report: Report) -> str:
    """The sentence that a reader in a hurry wants."""
    good = [a for a in report.artifacts if all(g.ok for g in a.gates)]
    if not report.ok:
        failed = [g for g in report.gates if not g.ok]
        return f"{len(failed)} gate(s) said no. First: {failed[0].artifact}, {failed[0].name}: {failed[0].reason}"
    smallest = min(good, key=lambda a: a.size_bytes)
    count = "One artifact agrees" if len(good) == 1 else f"{len(good)} artifacts agree"
    return f"{count} with the source. The smallest is {smallest.path} with {format_bytes(smallest.size_bytes)}."
