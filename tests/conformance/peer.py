"""onnxsim's own Core ML exporter on the suite's cases, through the same evaluator and comparison as ours.

It is given what its documentation asks for: the simplified model, the same deployment target, float32 compute.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conformance.judge import Result
    from tests.conformance.suite import Case

PEER = "onnxsim"


def export_by_onnxsim(case: Case, folder: Path, target: str) -> Path | str:
    """The package, or why there is none. onnxsim raises plain RuntimeError and whatever coremltools raises inside it."""
    import coremltools
    import onnxsim

    path = folder / "peer.mlpackage"
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            simplified, _ = onnxsim.simplify(case.model)
            onnxsim.export_coreml(
                simplified,
                str(path),
                minimum_deployment_target=getattr(coremltools.target, target),
                compute_precision=coremltools.precision.FLOAT32,
            )
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
    return path


def run_by_name_or_place(path: Path, case: Case) -> dict[str, Any]:
    """Outputs under the case's names: onnxsim may rename ports, and keeps their order."""
    from runtimes.registry import open_session

    with open_session(path) as session:
        feeds = dict(zip([s.name for s in session.inputs], case.feeds.values(), strict=False))
        feeds |= {name: array for name, array in case.feeds.items() if name in feeds}
        answers = session.run({s.name: feeds[s.name].astype(s.dtype) for s in session.inputs})
        names = [s.name for s in session.outputs]
    by_place = dict(zip(case.expected, (answers[name] for name in names), strict=False))
    return by_place | {name: array for name, array in answers.items() if name in case.expected}


def side_by_side(ours: Sequence[Result], theirs: Sequence[Result], cases: dict[str, Case]) -> list[str]:
    """The Markdown section: totals and one row per operator, over the cases that ``theirs`` judges."""
    mine = {result.name: result for result in ours}
    rows: dict[str, list[tuple[Result, Result]]] = defaultdict(list)
    for result in theirs:
        rows[cases[result.name].op_type].append((mine[result.name], result))
    statuses = Counter(result.status for result in theirs)
    others = [result for result in theirs if result.status not in ("passed", "refused")]
    return [
        f"## Side by side with onnxsim {version('onnxsim')}",
        "",
        "The same cases (all float32, unexpanded) through onnxsim's `simplify` and `export_coreml`, for the same deployment target",
        f"at float32, executed by the same evaluator: {statuses['passed']} right, {statuses['refused']} refused,",
        f"{len(others)} neither, of {len(theirs)}.",
        "",
        "| operator | cases | edgewright right | onnxsim right |",
        "|---|---|---|---|",
        *[
            f"| {op} | {len(pairs)} | {_passed(p[0] for p in pairs)} | {_passed(p[1] for p in pairs)} |"
            for op, pairs in sorted(rows.items())
        ],
        "",
        "Exported by onnxsim, and neither right nor refused:",
        "",
        *[f"- {result.name}: {result.status}: {result.reason.replace('|', '/')}" for result in others],
        "",
    ]


def _passed(results: Any) -> int:
    return sum(result.status == "passed" for result in results)
