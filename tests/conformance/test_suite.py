"""ONNX's own node tests through both exporters: each is right at the suite's tolerance, or refused with a reason.

The expected results are committed and strict both ways: a case that starts to pass, or starts to be refused, must change them
(`python -m tests.conformance.scoreboard FORMAT` writes them and the scoreboard in docs/conformance).
"""

from __future__ import annotations

import pytest

from tests.conformance.judge import PASSED, REFUSED, judge_all
from tests.conformance.scoreboard import EXPECTED_FAILURES, expected_lines, expected_path

pytest.importorskip("ai_edge_litert")
pytest.importorskip("coremltools")


@pytest.mark.parametrize("fmt", ["tflite", "coreml"])
def test_every_case_is_right_or_refused(fmt: str) -> None:
    results = judge_all(fmt)
    wrong = {r.name: f"{r.status}: {r.reason}" for r in results if r.status not in (PASSED, REFUSED)}
    assert set(wrong) == set(EXPECTED_FAILURES[fmt]), wrong
    assert all(r.reason for r in results if r.status == REFUSED)
    expected = expected_path(fmt).read_text("utf-8").splitlines()
    assert set(expected_lines(results)) ^ set(expected) == set()


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_other_core_ml_targets_agree_where_they_accept(target: str) -> None:
    results = judge_all("coreml", every=9, target=target)
    wrong = {r.name: r.reason for r in results if r.status not in (PASSED, REFUSED)}
    assert set(wrong) <= set(EXPECTED_FAILURES["coreml"]), wrong
    assert sum(r.status == PASSED for r in results) > 0.7 * len(results)
