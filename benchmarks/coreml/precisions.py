"""`python -m benchmarks.coreml precisions [NET...]`: float32 and float16 packages in the reference evaluator, against the source.

Errors are the largest difference relative to the output's range. The bound is the one that a build gates float16 with: what
independent roundings may add up to in the package as written (compiler/verification/half_bound.py). Nodes that calibration shows
float16 to lose are float32, as in a build. Writes docs/conformance/coreml_float.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.coreml.cases import EVERY, Case, case
from benchmarks.coreml.pages import Page
from runtimes.session import Array

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance" / "coreml_float.md"
TEMPLATE = """# Float precisions in Core ML

Written by `python -m benchmarks.coreml precisions`. Real models with data of their kind, and timm's nets with seeded random
weights, exported and executed by the reference evaluator, against the source (onnxruntime, LiteRT or PyTorch) on samples that
calibration did not see: the largest difference relative to the output's range.

float32 within {single:g}: {good} of {total}. float16 within its bound: {half} of {total}; the largest share of the
bound that any net uses is {share:.0%}.

The bound is what a build holds float16 against: what independent roundings may add up to in this package on these samples, and
{cap:g} at most (docs/adr/0027-half-rounding.md).

| net | float32 error | float16 error | bound | share of it | nodes in float32 |
|---|---|---|---|---|---|
{rows}
"""


def measure(name: str, folder: Path) -> str:
    """The row's cells."""
    from compiler.calibration.dataset import make_dataset
    from compiler.gates import half_limit
    from compiler.hubfacts import hub_inputs
    from compiler.quantization.half_ranges import mark_float32
    from compiler.verification.half_bound import half_bound
    from compiler.verification.metrics import parity
    from profiles.schema import Precision

    one = case(name, folder)
    _, single = _answers(one, one.hub, Precision.FP32, folder)
    marked, reasons = mark_float32(one.hub, make_dataset(one.calibration, hub_inputs(one.hub), where=name))
    path, half = _answers(one, marked, Precision.FP16, folder)
    found = half_bound(path, one.unseen, half, one.truth)
    limit = half_limit(found)
    exact = parity(single, one.truth).relative_error
    return f"{exact:.1e} | {found.error:.1e} | {limit:.1e} | {found.error / limit:.0%} | {len(reasons)}"


def _answers(one: Case, model: Any, precision: Any, folder: Path) -> tuple[Path, dict[str, Array]]:
    from compiler.exporters import EXPORTERS
    from compiler.exporters.base import ExportOptions
    from runtimes.coreml_reference.session import open_package
    from runtimes.session import run_dataset

    path = folder / f"{one.name}-{precision.value}.mlpackage"
    EXPORTERS.get("coreml").export(model, path, ExportOptions(precision))
    with open_package(path) as session:
        return path, run_dataset(session, one.unseen)


def main(names: Sequence[str], kept: Path | None = None, partial: bool = False) -> int:
    """Print a row per net; with all nets, write the page (see Page.fill)."""
    Page(PAGE, EVERY, measure, render).fill(names, kept, partial)
    return 0


def render(rows: Sequence[str]) -> str:
    """The page as Markdown."""
    from compiler.gates import LOWERING_TOLERANCE
    from profiles.schema import Precision

    single, cap = LOWERING_TOLERANCE[Precision.FP32], LOWERING_TOLERANCE[Precision.FP16]
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    measured = [row for row in cells if len(row) > 5]
    shares = [float(row[4].rstrip("%")) / 100 for row in measured]
    return TEMPLATE.format(
        single=single,
        cap=cap,
        good=sum(float(row[1]) <= single for row in measured),
        half=sum(share <= 1 for share in shares),
        share=max(shares, default=0.0),
        total=len(cells),
        rows="\n".join(rows),
    )
