from __future__ import annotations

import math

import numpy as np

from compiler import gates
from compiler.verification.metrics import Flips, Parity, StepAgreement, mcnemar_p
from profiles.schema import Precision


def _parity(relative: float, finite: bool = True) -> Parity:
    return Parity(relative, relative, 40.0, 1.0, "logits", finite, 4)


def _flips(lost: int, gained: int, total: int = 500) -> Flips:
    return Flips(lost, gained, mcnemar_p(lost, gained), total)


def test_float_lowering_has_a_limit_and_int8_has_none() -> None:
    exact = gates.lowering_gate("a", Precision.FP32, _parity(9e-5))
    off = gates.lowering_gate("a", Precision.FP32, _parity(2e-4))
    assert exact is not None and exact.ok
    assert off is not None and not off.ok and "'logits'" in off.reason
    assert gates.lowering_gate("a", Precision.INT8, _parity(0.5)) is None


def test_nan_fails() -> None:
    assert not gates.finite_gate("a", _parity(math.inf, finite=False)).ok


def test_accuracy_gate_uses_paired_flips() -> None:
    assert gates.accuracy_gate("a", _flips(3, 0), 1.0).ok  # 0.6 points
    lost = gates.accuracy_gate("a", _flips(10, 0), 1.0)  # 2 points, certain
    assert not lost.ok
    assert "2.00 points" in lost.reason
    noisy = gates.accuracy_gate("a", _flips(16, 10), 1.0)  # 1.2 points, p = 0.33
    assert noisy.ok
    assert "noise" in noisy.reason


def test_size_and_agreement() -> None:
    assert not gates.size_gate("a", 2048, 1024).ok
    assert gates.agreement_gate(StepAgreement("a", "b", 3.0, 0.5, 0.98, 0.99)).ok
    assert not gates.agreement_gate(StepAgreement("a", "b", 3.0, 0.5, 0.9, 0.98)).ok


def test_an_output_that_no_longer_varies_fails() -> None:
    truth = {"y": np.arange(6, dtype=np.float32).reshape(3, 2)}
    assert gates.invariants_gate("a", {"y": truth["y"] + 1}, truth).ok
    dead = gates.invariants_gate("a", {"y": np.ones((3, 2), np.float32)}, truth)
    assert not dead.ok and "'y' is the same for every input" in dead.reason
    constant = {"y": np.ones((3, 2), np.float32)}
    assert gates.invariants_gate("a", constant, constant).ok  # the source's own is constant too


def test_shares_still_sum_to_one() -> None:
    shares = np.float32([[0.2, 0.8], [0.5, 0.5]])
    assert gates.invariants_gate("a", {"y": shares + np.float32(0.002)}, {"y": shares}).ok
    broken = gates.invariants_gate("a", {"y": shares * np.float32(0.9)}, {"y": shares})
    assert not broken.ok and "sums to 1 within 0.1" in broken.reason
    logits = np.float32([[2.0, -1.0], [0.1, 0.9]])
    assert gates.invariants_gate("a", {"y": logits * 2}, {"y": logits}).ok
