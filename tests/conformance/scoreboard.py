"""`python -m tests.conformance.scoreboard FORMAT`: run the suite, write docs/conformance/FORMAT.md and the expected results."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.conformance.judge import PASSED, REFUSED, ROOT, Result, judge_all, judge_named
from tests.conformance.outside import counted
from tests.conformance.peer import PEER, side_by_side
from tests.conformance.suite import suite

EXPECTED = Path(__file__).parent / "expected"
TITLES = {
    "tflite": "TFLite, executed by LiteRT",
    "coreml": "Core ML, executed by the reference evaluator (deployment target iOS17)",
}
# Cases that are executed and miss the suite's tolerance, with the reason. Strict: one that passes must leave this table.
_INVERSE = "the suite's own result is 1.9e-7 where the exact one is zero, which is what we give; 1e-7 is allowed"
_BFLOAT16 = "computed in float32: the suite rounds every step to bfloat16, whose unit is 4e-3, and allows 1e-3"
_ATTENTION_BFLOAT16 = ("3d_causal", "4d_attn_mask_causal", "4d_causal", "4d_causal_padded_kv", "4d_padded_kv")
EXPECTED_FAILURES: dict[str, dict[str, str]] = {
    "tflite": {
        "test_dft_inverse": _INVERSE,
        "test_dft_inverse_opset19": _INVERSE,
        **{f"test_attention_{case}_bf16{end}": _BFLOAT16 for case in _ATTENTION_BFLOAT16 for end in ("", "_expanded")},
    },
    "coreml": {"test_dft_inverse": _INVERSE, "test_dft_inverse_opset19": _INVERSE},
}


def expected_path(fmt: str) -> Path:
    return EXPECTED / f"{fmt}.txt"


def expected_lines(results: Sequence[Result]) -> list[str]:
    return [f"{result.name} {result.status}" for result in results]


def main(fmt: str) -> None:
    results = judge_all(fmt)
    EXPECTED.mkdir(exist_ok=True)
    expected_path(fmt).write_text("\n".join(expected_lines(results)) + "\n", "utf-8")
    board = ROOT / "docs" / "conformance" / f"{fmt}.md"
    board.parent.mkdir(parents=True, exist_ok=True)
    board.write_text(render(fmt, results) + "\n".join(_peer_section(fmt, results)), "utf-8")
    print(f"wrote {board.relative_to(ROOT)}: {Counter(result.status for result in results)}")


def _peer_section(fmt: str, results: Sequence[Result]) -> list[str]:
    """Core ML has a peer that converts ONNX too: the all-float cases through it, in the same judge."""
    if fmt != "coreml":
        return []
    cases = {case.name: case for case in suite()}
    names = [r.name for r in results if cases[r.name].all_float and not cases[r.name].expanded]
    return ["", *side_by_side(results, judge_named(PEER, names), cases)]


def render(fmt: str, results: Sequence[Result]) -> str:
    """The scoreboard as Markdown."""
    cases = {case.name: case for case in suite()}
    left_out = counted(suite(), fmt)
    floats = [r for r in results if cases[r.name].all_float and not cases[r.name].expanded]
    plain = [r for r in results if not cases[r.name].expanded]
    lines = [
        f"# ONNX's node tests in {TITLES[fmt]}",
        "",
        f"Written by `python -m tests.conformance.scoreboard {fmt}`, from the node tests of onnx {version('onnx')}. Each case goes",
        "through the importer, the clean-up and the exporter as a source of `edgewright build` does, is executed, and is compared",
        "with the suite's own results at the suite's own tolerance, shapes and layouts unchanged."
        + (
            ""
            if fmt == "tflite"
            else " Core ML has no 64-bit, 8-bit or boolean inputs and outputs: integers are compared by value."
        ),
        "Weights, shapes, axes and bounds are constants, as in trained models; `FROZEN` in tests/conformance/suite.py lists them.",
        "",
        "| cases | executed and right | refused with a reason | executed and outside the tolerance | share right |",
        "|---|---|---|---|---|",
        _row("all float32, unexpanded", floats),
        _row("all, unexpanded", plain),
        _row("all, with the expanded forms", results),
        "",
        f"{sum(count for count, _ in left_out)} of the suite's {len(cases)} cases are outside: the format cannot represent what",
        "they need, each counted under the first reason that applies (tests/conformance/outside.py).",
        "",
        "| cases | outside because of |",
        "|---|---|",
        *[f"| {count} | {reason} |" for count, reason in left_out],
        "",
        *_failures(fmt, results),
        "## By opset",
        "",
        "| opset | right | of |",
        "|---|---|---|",
        *_grouped(results, lambda r: f"{cases[r.name].opset:02d}"),
        "",
        "## By operator",
        "",
        "| operator | right | of |",
        "|---|---|---|",
        *_grouped(plain, lambda r: cases[r.name].op_type),
        "",
        "## Refusals",
        "",
        "| case | reason |",
        "|---|---|",
        *[f"| {r.name} | {_escaped(r.reason)} |" for r in results if r.status == REFUSED],
        "",
    ]
    return "\n".join(lines)


def _row(title: str, results: Sequence[Result]) -> str:
    counts = Counter(result.status for result in results)
    other = len(results) - counts[PASSED] - counts[REFUSED]
    share = counts[PASSED] / len(results)
    return f"| {title} ({len(results)}) | {counts[PASSED]} | {counts[REFUSED]} | {other} | {share:.1%} |"


def _failures(fmt: str, results: Iterable[Result]) -> list[str]:
    failing = [r for r in results if r.status not in (PASSED, REFUSED)]
    if not failing:
        return []
    reasons = EXPECTED_FAILURES[fmt]
    return [
        "## Outside the tolerance",
        "",
        *[f"- {r.name}: {reasons.get(r.name, _escaped(r.reason))}" for r in failing],
        "",
    ]


def _grouped(results: Iterable[Result], key: object) -> list[str]:
    assert callable(key)
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[key(result)].append(result)
    return [f"| {k} | {sum(r.status == PASSED for r in v)} | {len(v)} |" for k, v in sorted(groups.items())]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main(sys.argv[1])
