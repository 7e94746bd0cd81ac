"""TopK, GatherND, CumSum, Mod, casts to bytes and empty pieces, executed by the reference evaluator, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.exporters.base import ExportOptions
from compiler.exporters.coreml import EXPORTER
from profiles.schema import Precision
from runtimes.coreml_reference.session import open_package
from tests.compiler.exporters.coreml.support import Arrays, hub, parse, random_feeds, reference
from tests.compiler.exporters.coreml.test_reference_evaluator import evaluated

TIES = np.float32([[3, 1, 3, 2, 1, 3], [-1, -1, -4, 0, 0, -2]])
SIGNED = np.int32([7, -7, 7, -7, 0, 9, -9, 5])
DIVISORS = np.int32([3, 3, -3, -3, 4, 9, 2, -7])


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17", "iOS18"])
@pytest.mark.parametrize(("largest", "axis", "k"), [(1, -1, 4), (0, 1, 6), (1, 0, 1), (0, 0, 2)])
def test_top_k_puts_the_first_of_equals_first(tmp_path: Path, largest: int, axis: int, k: int, target: str) -> None:
    shape = [2, 6]
    shape[axis] = k
    text = (
        f"net (float[2, 6] x) => (float{shape} v, int64{shape} i) "
        f"{{ v, i = TopK <axis = {axis}, largest = {largest}> (x, k) }}"
    )
    model = hub(parse(text, k=np.array([k])))
    got, want = evaluated(model, {"x": TIES}, tmp_path, target=target), reference(model, {"x": TIES})
    np.testing.assert_array_equal(got["v"], want["v"])
    np.testing.assert_array_equal(got["i"], want["i"])


@pytest.mark.parametrize("output", ["v", "i"])
def test_one_output_of_top_k_alone(tmp_path: Path, output: str) -> None:
    kind = "float" if output == "v" else "int64"
    model = hub(
        parse(f"net (float[2, 6] x) => ({kind}[2, 3] {output}) {{ v, i = TopK (x, k) }}", k=np.array([3])),
    )
    got, want = evaluated(model, {"x": TIES}, tmp_path), reference(model, {"x": TIES})
    np.testing.assert_array_equal(got[output], want[output])


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
@pytest.mark.parametrize("at_run_time", [False, True])
@pytest.mark.parametrize(
    ("batch", "indices"),
    [
        (0, [[0, -1], [2, 1]]),
        (0, [[[-3]], [[1]]]),
        (0, [[1, 2, -4], [0, 0, 0], [-1, -1, -1]]),
        (1, [[[1]], [[-1]], [[0]]]),
        (2, [[[0], [1], [2]], [[-1], [-2], [3]], [[3], [0], [-4]]]),
    ],
)
def test_gather_nd(tmp_path: Path, batch: int, indices: list[object], at_run_time: bool, target: str) -> None:
    """A row of indices reaches the start or the end of each of its axes."""
    array = np.array(indices, np.int64)
    x = np.arange(36, dtype=np.float32).reshape(3, 3, 4)
    result = [*array.shape[:-1], *x.shape[batch + array.shape[-1] :]]
    operand = f", int64{list(array.shape)} i" if at_run_time else ""
    text = f"net (float[3, 3, 4] x{operand}) => (float{result} y) {{ y = GatherND <batch_dims = {batch}> (x, i) }}"
    model = hub(parse(text) if at_run_time else parse(text, i=array))
    feeds: Arrays = {"x": x, "i": array} if at_run_time else {"x": x}
    np.testing.assert_array_equal(evaluated(model, feeds, tmp_path, target=target)["y"], reference(model, feeds)["y"])


def test_gather_nd_outside_its_axes_is_refused() -> None:
    text = "net (float[3, 4] x) => (float[1] y) { y = GatherND (x, i) }"
    (refusal,) = EXPORTER.check(hub(parse(text, i=np.array([[0, 4]]))), ExportOptions(Precision.FP32))
    assert "[3, 4]" in refusal.reason


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize(("exclusive", "reverse", "axis"), [(0, 0, 1), (1, 0, 0), (0, 1, -1), (1, 1, 1)])
def test_cumulative_sum(tmp_path: Path, exclusive: int, reverse: int, axis: int, dtype: type) -> None:
    kind = "int32" if dtype is np.int32 else "float"
    text = f"net ({kind}[3, 5] x) => ({kind}[3, 5] y) {{ y = CumSum <exclusive = {exclusive}, reverse = {reverse}> (x, a) }}"
    model = hub(parse(text, a=np.array(axis, np.int64)))
    # Whole numbers: their float32 sums are exact in any order.
    feeds: Arrays = {"x": np.random.default_rng(3).integers(-99, 99, (3, 5)).astype(dtype)}
    np.testing.assert_array_equal(evaluated(model, feeds, tmp_path)["y"], reference(model, feeds)["y"])


@pytest.mark.parametrize("fmod", [0, 1])
@pytest.mark.parametrize("kind", ["int32", "int64", "int8"])
def test_remainders_of_either_sign(tmp_path: Path, kind: str, fmod: int) -> None:
    model = hub(parse(f"net ({kind}[8] a, {kind}[8] b) => ({kind}[8] y) {{ y = Mod <fmod = {fmod}> (a, b) }}"))
    feeds: Arrays = {"a": SIGNED.astype(kind), "b": DIVISORS.astype(kind)}
    np.testing.assert_array_equal(evaluated(model, feeds, tmp_path)["y"], reference(model, feeds)["y"])


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_a_cast_to_bytes_keeps_the_low_bits(tmp_path: Path, kind: str, target: str) -> None:
    values = np.int32([0, 1, 127, 128, 255, 256, -1, -128, -129, 70000, -70000, 2**31 - 200])
    model = hub(parse(f"net (int32[12] x) => ({kind}[12] y) {{ y = Cast <to = {2 if kind == 'uint8' else 3}> (x) }}"))
    path = EXPORTER.export(model, tmp_path / "bytes.mlpackage", ExportOptions(Precision.FP32, target)).path
    with open_package(path) as session:
        np.testing.assert_array_equal(session.run({"x": values})["y"], values.astype(kind))


def test_a_scale_of_run_time_rounds_to_even_and_saturates(tmp_path: Path) -> None:
    text = "net (float[2, 6] x, float[2] s, int8[2] z) => (int8[2, 6] y) { y = QuantizeLinear <axis = 0> (x, s, z) }"
    feeds: Arrays = {
        "x": np.float32([[1e9, -1e9, 3.5, 2.5, -129, 127.4], [0.5, 1.5, -0.5, 400, -400, 7]]),
        "s": np.float32([1, 3]),
        "z": np.int8([5, -3]),
    }
    model = hub(parse(text))
    np.testing.assert_array_equal(evaluated(model, feeds, tmp_path)["y"], reference(model, feeds)["y"])


def test_an_empty_piece_that_is_joined_again_costs_nothing(tmp_path: Path) -> None:
    """As rotary embeddings over the whole head are exported: nothing is left unrotated, and joined all the same."""
    text = """net (float[2, 4] x) => (float[2, 4] y) {
        all, none = Split <axis = 1> (x, sizes)
        r = Relu (all)
        y = Concat <axis = 1> (none, r)
    }"""
    model = hub(parse(text, sizes=np.array([4, 0])))
    feeds = random_feeds(model)
    np.testing.assert_array_equal(evaluated(model, feeds, tmp_path)["y"], np.maximum(feeds["x"], 0))


def test_an_empty_piece_that_is_computed_with_is_refused() -> None:
    text = """net (float[2, 4] x) => (float[2, 4] y) {
        all, none = Split <axis = 1> (x, sizes)
        r = Relu (none)
        y = Concat <axis = 1> (all, r)
    }"""
    refusals = EXPORTER.check(hub(parse(text, sizes=np.array([4, 0]))), ExportOptions(Precision.FP32))
    assert any("is empty" in refusal.reason for refusal in refusals)


@pytest.mark.parametrize("kind", ["Max", "Min"])
def test_truth_is_reduced(tmp_path: Path, kind: str) -> None:
    text = f"net (bool[3, 4] x) => (bool[3] y) {{ y = Reduce{kind} <keepdims = 0> (x, a) }}"
    model = hub(parse(text, a=np.array([1])))
    x = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], np.bool_)
    expected = x.any(axis=1) if kind == "Max" else x.all(axis=1)
    np.testing.assert_array_equal(evaluated(model, {"x": x}, tmp_path)["y"].astype(bool), expected)
