"""What all sessions share: how samples of a model with and without a batch axis are told apart and run."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from runtimes.errors import InputMismatch
from runtimes.onnxruntime_session import open_bytes
from runtimes.session import TensorSpec, run_dataset, sample_rows

# A matrix and how often to double it: no axis is a batch.
UNBATCHED = """<ir_version: 10, opset_import: ["": 21]>
g (float[2, 3] x, int64[1] n) => (float[2, 3] y) {
  y = Loop(n, , x) <body = b (int64 i, bool c, float[2, 3] a) => (bool d, float[2, 3] e) { d = Identity(c) e = Add(a, a) }>
}"""
X, N = np.arange(18, dtype=np.float32).reshape(6, 3), np.array([3, 0, 2])


def _run(x: np.ndarray, n: np.ndarray) -> np.ndarray:
    with open_bytes(onnx.parser.parse_model(UNBATCHED).SerializeToString()) as session:
        return run_dataset(session, {"x": x, "n": n})["y"]


def test_inputs_of_different_first_axes_are_samples_as_a_whole() -> None:
    np.testing.assert_array_equal(_run(X, N), X * np.repeat([8.0, 1.0, 4.0], 2)[:, np.newaxis])


@pytest.mark.parametrize(("x", "n"), [(X[:5], N), (X, N[:2])], ids=["a part of a sample", "another count"])
def test_what_is_no_whole_number_of_samples_is_refused(x: np.ndarray, n: np.ndarray) -> None:
    with pytest.raises(InputMismatch, match=r"a sample takes|different sample counts"):
        _run(x, n)


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [([(4, 3), (4,)], [1, 1]), ([(None, 3), (2,)], [1, 1]), ([(2, 3), (1,)], [2, 1]), ([(2, 3), (5,), ()], [2, 5, 1])],
)
def test_rows_of_a_sample(shapes: list[tuple[int | None, ...]], rows: list[int]) -> None:
    specs = tuple(TensorSpec(str(index), "float32", shape) for index, shape in enumerate(shapes))
    assert list(sample_rows(specs).values()) == rows
