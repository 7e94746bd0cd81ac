"""open_hub: runs from memory, taps intermediate values, reports what goes wrong in words."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.errors import SourceError
from compiler.hub_session import open_hub
from runtimes.errors import InferenceFailed, InputMismatch
from tests.compiler.hub_models import hub

NET = """
g (float[1, 3] x) => (float[1, 3] y)
<float[3] c = {1.0, 2.0, 3.0}>
{
  a = Add(x, c)
  r = Relu(a)
  y = Mul(r, c)
}
"""


def test_taps_answer_beside_the_outputs() -> None:
    x = np.array([[-2.0, 0.0, 1.0]], np.float32)
    with open_hub(hub(NET), taps=["a", "r", "y"]) as session:
        found = session.run({"x": x})
    assert [spec.name for spec in session.outputs] == ["y", "a", "r"]
    np.testing.assert_array_equal(found["a"], [[-1.0, 2.0, 4.0]])
    np.testing.assert_array_equal(found["r"], [[0.0, 2.0, 4.0]])
    np.testing.assert_array_equal(found["y"], [[0.0, 4.0, 12.0]])


def test_the_model_is_not_modified() -> None:
    model = hub(NET)
    open_hub(model, taps=["a"]).close()
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_an_unknown_tap_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="'nope'"):
        open_hub(hub(NET), taps=["nope"])


def test_feeds_are_checked_and_a_closed_session_says_so() -> None:
    session = open_hub(hub(NET))
    with pytest.raises(InputMismatch, match="float64"):
        session.run({"x": np.zeros((1, 3))})
    session.close()
    session.close()
    with pytest.raises(InferenceFailed, match="closed"):
        session.run({"x": np.zeros((1, 3), np.float32)})


def test_a_model_that_onnxruntime_refuses_is_a_source_error() -> None:
    model = hub(NET)
    model.graph[1].op_type = "NoSuchOperator"
    with pytest.raises(SourceError, match="NoSuchOperator"):
        open_hub(model)
