"""Few changed codes: what they cost and what they gain, against the old codes and the nearest ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compiler.quantization.pursuit import Problem, pursue


@pytest.fixture
def problem() -> Problem:
    """Weights that moved together, as a gradient's outer product does, and inputs that go together."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((400, 8)) @ rng.standard_normal((8, 64)) + 0.3 * rng.standard_normal((400, 64))
    inputs = np.concatenate([inputs, np.ones((400, 1))], 1)[None]
    step = np.full((1, 16, 65), 0.01)
    step[:, :, -1] = 1e-4
    before = rng.integers(-100, 100, (1, 16, 65)) + rng.uniform(-0.5, 0.5, (1, 16, 65))
    old = np.rint(before)
    moved = before + 0.2 * rng.standard_normal((1, 16, 1)) * np.sign(inputs[:, :1])
    moved[:, :, -1] += 30
    hessian = np.swapaxes(inputs, 1, 2) @ inputs / 400
    return Problem(moved * step, step, old, np.rint(moved), hessian, with_bias=True, limit=127)


def _price(problem: Problem) -> float:
    return float(problem.error(problem.nearest).mean()) / 100


def test_few_changes_undo_most_of_what_holding_on_costs(problem: Problem) -> None:
    codes = pursue(problem, _price(problem))
    assert problem.error(codes).sum() < problem.error(problem.nearest).sum()
    assert (codes != problem.old).sum() < (problem.nearest != problem.old).sum()
    assert problem.error(problem.old).sum() > 10 * problem.error(codes).sum()


def test_the_dearer_the_fewer(problem: Problem) -> None:
    changed = [(pursue(problem, share * _price(problem)) != problem.old).sum() for share in (1, 30, 1e9)]
    assert changed[0] > changed[1] > changed[2] == 0


def test_for_nothing_no_channel_is_worse_than_rounding_to_nearest(problem: Problem) -> None:
    codes = pursue(problem, 0.0)
    assert (problem.error(codes) <= problem.error(problem.nearest) * (1 + 1e-12)).all()


def test_weights_stay_in_range_and_biases_are_free(problem: Problem) -> None:
    tight = replace(problem, limit=50, old=np.clip(problem.old, -50, 50), nearest=np.clip(problem.nearest, -50, 50))
    wide = replace(tight, old=tight.old.copy(), nearest=tight.nearest.copy())
    wide.nearest[:, :, -1] = problem.nearest[:, :, -1]
    codes = pursue(wide, _price(problem))
    assert np.abs(codes[:, :, :-1]).max() <= 50
    assert np.abs(codes[:, :, -1]).max() > 50
    assert (codes == np.rint(codes)).all()


def test_groups_do_not_touch_each_other(problem: Problem) -> None:
    arrays = (problem.wanted, problem.step, problem.old, problem.nearest, problem.hessian)
    other = problem.hessian[:, ::-1, ::-1]
    both = [np.concatenate([a, a]) for a in arrays[:4]]
    joint = Problem(both[0], both[1], both[2], both[3], np.concatenate([problem.hessian, other]), True, 127)
    # The share of changes is the tensor's; for nothing it has no say.
    np.testing.assert_array_equal(pursue(joint, 0.0)[:1], pursue(problem, 0.0))
