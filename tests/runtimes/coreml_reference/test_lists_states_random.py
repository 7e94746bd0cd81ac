"""Lists, states and random numbers in programs that Apple's converter wrote, against NumPy, PyTorch and the distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.coreml_reference.session import open_package
from runtimes.coreml_reference.types import TensorList
from runtimes.errors import InferenceFailed
from tests.runtimes.coreml_reference.test_ops import evaluate

SIZE = 20_000


@pytest.fixture(scope="module")
def mil() -> Any:
    pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder

    return Builder


def _package(mil: Any, folder: Path, body: Any, target: str = "iOS18", states: int = 0) -> Path:
    """The program ``body`` of x, float32 [3, 4], and of ``states`` float16 [4], written by coremltools."""
    import coremltools as ct
    from coremltools.converters.mil.mil import types

    version = getattr(ct.target, target)
    specs = [mil.TensorSpec(shape=(3, 4)), *[mil.StateTensorSpec((4,), dtype=types.fp16) for _ in range(states)]]
    program = mil.program(input_specs=specs, opset_version=version)(body)
    model = ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=version, compute_precision=ct.precision.FLOAT32
    )
    path = folder / "made.mlpackage"
    model.save(str(path))
    return path


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    with open_package(path) as session:
        return next(iter(session.run({"x": x}).values()))


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_a_loop_that_writes_a_list(mil: Any, tmp_path: Path, target: str) -> None:
    def body(x: Any) -> Any:
        def step(i: Any, ls: Any) -> Any:
            row = mil.sin(x=mil.gather(x=x, indices=i, axis=0))
            return mil.add(x=i, y=np.int32(1)), mil.list_write(ls=ls, index=i, value=row)

        ls = mil.make_list(init_length=1, dynamic_length=True, elem_shape=(4,), dtype="fp32")
        count, ls = mil.while_loop(
            _cond=lambda i, ls: mil.less(x=i, y=np.int32(3)), _body=step, loop_vars=(np.int32(0), ls)
        )
        last = mil.list_read(ls=ls, index=np.int32(2))
        every = mil.list_gather(ls=ls, indices=mil.range_1d(start=np.int32(0), end=count, step=np.int32(1)))
        return mil.mul(x=mil.add(x=every, y=last), y=mil.cast(x=mil.list_length(ls=ls), dtype="fp32"))

    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    path = _package(mil, tmp_path, body, target)
    np.testing.assert_allclose(_run(path, x), (np.sin(x) + np.sin(x[2])) * 3, atol=1e-6)
    with open_package(path) as session:
        assert [step.op_type for step in session.trace({"x": x})].count("list_read") == 1


def test_a_list_that_is_scattered_into(mil: Any, tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        ls = mil.make_list(init_length=3, dynamic_length=False, elem_shape=(4,), dtype="fp32")
        ls = mil.list_scatter(ls=ls, indices=np.int32([2, 0, 1]), value=x)
        return mil.list_gather(ls=ls, indices=np.int32([0, 1, 2, 2]))

    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(_run(_package(mil, tmp_path, body), x), x[[1, 2, 0, 0]])


EMPTY = TensorList((None, None), "float32", (2,), False)


@pytest.mark.parametrize(
    ("kind", "kwargs", "reason"),
    [
        ("list_write", {"index": 2, "value": np.zeros(2, np.float32)}, "outside a list of 2"),
        ("list_write", {"index": -1, "value": np.zeros(2, np.float32)}, "outside a list of 2"),
        ("list_write", {"index": 0, "value": np.zeros(3, np.float32)}, "an element of float32"),
        ("list_write", {"index": 0, "value": np.zeros(2, np.int32)}, "an element of int32"),
        ("list_scatter", {"indices": np.int32([0]), "value": np.zeros((2, 2), np.float32)}, "2 values for 1 indices"),
        ("list_read", {"index": 1}, "never written"),
        ("list_gather", {"indices": np.int32([5])}, "outside a list of 2"),
    ],
)
def test_what_does_not_fit_a_list_is_refused(kind: str, kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        evaluate(kind, ls=EMPTY, **kwargs)


def test_a_list_of_a_damaged_length_is_not_allocated() -> None:
    with pytest.raises(ValueError, match="longer than"):
        evaluate("make_list", init_length=2**31 - 1, elem_shape=(np.int32(2),), dtype="fp32")
    growing = TensorList((), "float32", (2,), True)
    with pytest.raises(ValueError, match="longer than"):
        evaluate("list_write", ls=growing, index=2**31 - 2, value=np.zeros(2, np.float32))


def test_a_state_goes_on_from_run_to_run(tmp_path: Path) -> None:
    """A running sum converted from PyTorch, which keeps it in a buffer."""
    ct, torch = pytest.importorskip("coremltools"), pytest.importorskip("torch")

    class Sum(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x: Any) -> Any:
            self.total.add_(x)
            return self.total * 2

    net, x = Sum().eval(), np.arange(4, dtype=np.float32)
    model = ct.convert(
        torch.jit.trace(net, torch.zeros(4)), minimum_deployment_target=ct.target.iOS18,
        inputs=[ct.TensorType("x", shape=(4,))], outputs=[ct.TensorType("y", dtype=np.float32)],
        states=[ct.StateType(wrapped_type=ct.TensorType(shape=(4,), dtype=np.float16), name="total")],
    )  # fmt: skip
    model.save(str(tmp_path / "sum.mlpackage"))
    net.total.zero_()  # tracing added to it
    with open_package(tmp_path / "sum.mlpackage") as session:
        for _ in range(3):
            list(session.trace({"x": x}))  # leaves the state as it is
            with torch.no_grad():
                np.testing.assert_array_equal(session.run({"x": x})["y"], net(torch.from_numpy(x)).numpy())
        session.reset()
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)


def test_a_run_that_fails_leaves_the_states(mil: Any, tmp_path: Path) -> None:
    def body(x: Any, s: Any) -> Any:
        row = mil.cast(x=mil.reduce_sum(x=x, axes=[0]), dtype="fp16")
        total = mil.coreml_update_state(state=s, value=mil.add(x=mil.read_state(input=s), y=row))
        ls = mil.make_list(init_length=1, dynamic_length=False, elem_shape=(4,), dtype="fp16")
        place = mil.cast(x=mil.reduce_max(x=x), dtype="int32")  # 0 fits
        ls = mil.list_write(ls=ls, index=place, value=total)
        return mil.cast(x=mil.list_read(ls=ls, index=np.int32(0)), dtype="fp32")

    with open_package(_package(mil, tmp_path, body, states=1)) as session:
        half = np.full((3, 4), 0.5, np.float32)
        session.run({"x": half})
        with pytest.raises(InferenceFailed, match="outside a list"):
            session.run({"x": half * 4})
        np.testing.assert_array_equal(next(iter(session.run({"x": half}).values())), np.full(4, 3.0))


DISTRIBUTIONS = {
    "random_uniform": ({"low": -1.0, "high": 3.0}, 1.0, 16 / 12),
    "random_normal": ({"mean": 2.0, "stddev": 0.5}, 2.0, 0.25),
    "random_bernoulli": ({"prob": 0.25}, 0.25, 0.1875),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_a_distribution_and_its_seed(kind: str) -> None:
    """Mean and variance within five standard errors; what the seed promises."""
    kwargs, mean, variance = DISTRIBUTIONS[kind]
    drawn = evaluate(kind, shape=np.int32([SIZE]), seed=7, **kwargs)
    assert abs(drawn.mean() - mean) < 5 * (variance / SIZE) ** 0.5
    assert abs(drawn.var() - variance) < 5 * variance * (3 / SIZE) ** 0.5
    np.testing.assert_array_equal(drawn, evaluate(kind, shape=np.int32([SIZE]), seed=7, **kwargs))
    assert np.any(drawn != evaluate(kind, shape=np.int32([SIZE]), seed=8, **kwargs))
    assert np.any(evaluate(kind, shape=np.int32([SIZE])) != evaluate(kind, shape=np.int32([SIZE])))


@pytest.mark.parametrize("mode", ["logits", "probs"])
def test_categories(mode: str) -> None:
    probabilities = np.float32([[0.1, 0.6, 0.3], [0.0, 0.5, 0.5]])
    with np.errstate(divide="ignore"):  # what cannot come is minus infinity
        x = np.log(probabilities) if mode == "logits" else probabilities
        drawn = evaluate("random_categorical", x=x, mode=mode, size=SIZE, seed=1)
    assert drawn.shape == (2, SIZE)
    shares = np.stack([(drawn == k).mean(axis=1) for k in range(3)], axis=1)
    np.testing.assert_allclose(shares, probabilities, atol=5 * 0.5 / SIZE**0.5)


def test_bounds_of_a_uniform_distribution() -> None:
    assert np.all(evaluate("random_uniform", shape=np.int32([9]), low=2.0, high=2.0, seed=1) == 2)
    ends = evaluate(
        "random_uniform", shape=np.int32([SIZE]), low=1.0, high=np.nextafter(np.float32(1), np.float32(2)), seed=1
    )
    assert np.all(ends == 1)


def test_a_program_with_random_numbers_runs(mil: Any, tmp_path: Path) -> None:
    path = _package(mil, tmp_path, lambda x: mil.add(x=x, y=mil.random_normal(shape=np.int32([3, 4]), seed=5)))
    first = _run(path, np.zeros((3, 4), np.float32))
    assert len(np.unique(first)) == 12
    np.testing.assert_array_equal(first, _run(path, np.zeros((3, 4), np.float32)))
