"""Figures as inline SVG that follows the page's text colour, so that it reads in light and in dark. The same figures draw the same
bytes."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

from profiles.schema import Precision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision. Its black is left out: it would vanish on a dark page.
COLOURS: Final = {
    "fp32": "#0072B2",
    "fp16": "#009E73",
    "int8": "#D55E00",
    "int16x8": "#CC79A7",
    "int8-dynamic": "#E69F00",
    "int8-weights": "#56B4E9",
    "int4-weights": "#8C8C8C",
}
# P. Tol, "Colour schemes" (SRON, 2021), the muted scheme, for the precisions beyond those.
LATER: Final = (
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
MAIN: Final = COLOURS["int8"]
SECOND: Final = COLOURS["fp32"]
GREY: Final = "#808080"
# matplotlib needs a colour where the page's own is meant; it is replaced by currentColor.
_TEXT: Final = "#010203"
_IDS: Final = re.compile(r' id="([^"]+)"')
_USED: Final = re.compile(r'(?:url\(#|href="#)([^")]+)')
MOST_NAME: Final = 34  # characters of a node's name on an axis


@dataclass(frozen=True, slots=True)
class Plot:
    """``caption`` stands above; ``about`` says in words what the figure shows, for those who do not see it."""

    caption: str
    about: str
    svg: str


def colour_of(precision: str) -> str:
    """A precision's colour; those outside of Okabe and Ito's eight have one of Tol's."""
    others = sorted(p.value for p in Precision if p.value not in COLOURS)
    return COLOURS.get(precision) or LATER[others.index(precision) % len(LATER)]


def figure(rows: float, width: float = 7.0) -> tuple[Figure, Axes]:
    """Axes for ``rows`` lines of text or bars; width in inches."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    coloured = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    text: Any = dict.fromkeys(coloured, _TEXT)
    plt.rcParams.update(
        {"svg.hashsalt": "edgewright", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, **text}
    )
    made, axes = plt.subplots(figsize=(width, 0.9 + 0.32 * rows), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", linewidth=0.4, alpha=0.5, color=GREY)
    axes.set_axisbelow(True)
    return made, axes


def plot(made: Figure, caption: str, about: str) -> Plot:
    """Close ``made`` and turn it into a Plot."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    made.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(made)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT, "currentColor")
    used = set(_USED.findall(text))  # other ids would repeat from figure to figure on one page
    text = _IDS.sub(lambda found: found.group(0) if found.group(1) in used else "", text)
    return Plot(caption, about, text.replace("<svg", f'<svg role="img" aria-label="{escape(about)}"', 1))


def short(name: str, most: int = MOST_NAME) -> str:
    """A name that fits an axis: its end is what tells nodes apart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def name_rows(axes: Any, names: list[str]) -> None:
    """Rows from top to bottom, one name each."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
