"""The comparison with onnxsim's exporter executes what it exports, and counts by operator."""

from __future__ import annotations

import pytest

from tests.conformance.judge import PASSED, REFUSED, Result, judge_named
from tests.conformance.peer import PEER, side_by_side
from tests.conformance.suite import suite

pytest.importorskip("coremltools")


def test_the_peer_is_executed_and_its_refusals_have_reasons() -> None:
    results = judge_named(PEER, ["test_abs", "test_split_equal_parts_2d", "test_celu"])
    assert [r.status for r in results] == [PASSED, PASSED, REFUSED]
    assert "Celu" in results[2].reason


def test_rows_count_what_each_side_gets_right() -> None:
    cases = {case.name: case for case in suite()}
    ours = [Result("test_abs", PASSED), Result("test_celu", PASSED)]
    theirs = [Result("test_abs", "wrong", "a | b"), Result("test_celu", REFUSED, "none")]
    lines = side_by_side(ours, theirs, cases)
    assert "| Abs | 1 | 1 | 0 |" in lines and "| Celu | 1 | 1 | 0 |" in lines
    assert "- test_abs: wrong: a / b" in lines
