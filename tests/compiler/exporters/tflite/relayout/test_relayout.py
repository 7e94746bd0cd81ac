"""The assignment of axis orders: the same numbers, never more transposes than before, and the optimum of brute force."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.relayout import relayout
from compiler.exporters.tflite.relayout.config import RESHAPE_COST, transposition_cost
from compiler.exporters.tflite.relayout.problem import build
from compiler.exporters.tflite.relayout.rewrite import write
from compiler.exporters.tflite.writer import GraphWriter
from tests.compiler.exporters.tflite.relayout.graphs import Graph, execute, outputs, random_graph

pytest.importorskip("ai_edge_litert")


def transposes_cost(writer: GraphWriter) -> int:
    """What the graph's TRANSPOSE operators cost, counted from the graph itself."""
    found = [o for o in writer.operations if o.code == "TRANSPOSE"]
    return sum(transposition_cost(o.inputs[0].shape, tuple(o.inputs[1].data)) for o in found)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize("rank", (3, 4))
@pytest.mark.parametrize("seed", range(25))
def test_the_numbers_stay_and_no_transpose_is_added(seed: int, rank: int) -> None:
    graph = random_graph(seed, 24, rank)
    result = relayout(graph.writer, graph.inputs, outputs(graph))
    before = execute(graph.writer, graph.inputs, outputs(graph))
    after = execute(result.writer, result.inputs, result.outputs)
    for got, want in zip(after, before, strict=True):
        # Sums along an axis run in another order where their axis lies elsewhere.
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    assert transposes_cost(result.writer) <= transposes_cost(graph.writer)
    assert len(result.moved) == sum(o.code == "TRANSPOSE" for o in result.writer.operations)


@pytest.mark.parametrize("seed", range(40))
def test_no_assignment_is_cheaper(seed: int) -> None:
    """Every combination of configs of a small graph is written out and its cost counted from the operators."""
    graph = random_graph(seed + 1000, 5)
    results = outputs(graph)
    problem = build(graph.writer.operations, [t for _, t in graph.inputs], [t for _, t in results])
    choices = [configs[:4] for configs in problem.configs]
    if prod(map(len, choices)) > 600:
        pytest.skip("too many combinations to try them all")
    problem.configs = choices
    costs = []
    for chosen in product(*choices):
        made = write(graph.writer, problem, chosen, graph.inputs, results)
        counted = transposes_cost(made.writer) + sum(config.cost for config in chosen)
        # The rest are RESHAPEs that stand for a move of axes of size 1.
        assert made.cost >= counted and (made.cost - counted) % RESHAPE_COST == 0
        costs.append(made.cost)
    best = relayout(graph.writer, graph.inputs, results)
    assert best.proven
    assert best.cost <= min(costs)


def test_two_transposes_around_agnostic_operators_cancel() -> None:
    """Channels last, work, channels first: nothing is left, and the constant, the axes and the pads are reordered."""
    graph = Graph(np.random.default_rng(0))
    x = graph.input((1, 4, 4, 3))
    first = graph.transpose(x, (0, 3, 1, 2))
    scaled = graph.emit("MUL", [first, graph.constant((3, 1, 1))], first.shape, "MulOptions")
    padded = graph.emit("PAD", [scaled, graph.numbers([(0, 0), (0, 1), (2, 0), (0, 0)])], (1, 4, 6, 4), "PadOptions")
    joined = graph.emit("CONCATENATION", [padded, padded], (1, 8, 6, 4), "ConcatenationOptions", axis=1)
    graph.transpose(joined, (0, 2, 3, 1))
    result = relayout(graph.writer, graph.inputs, outputs(graph))
    assert [o.code for o in result.writer.operations] == ["MUL", "PAD", "CONCATENATION"]
    for got, want in zip(
        execute(result.writer, result.inputs, result.outputs),
        execute(graph.writer, graph.inputs, outputs(graph)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


def test_image_to_tokens_needs_no_transpose() -> None:
    """A vision transformer's start: [N, C, H, W] of a convolution to [N, H W, C] is a reshape of what the kernel wrote."""
    graph = Graph(np.random.default_rng(0))
    x = graph.input((1, 4, 4, 3))
    conv = graph.emit(
        "CONV_2D",
        [x, graph.constant((5, 1, 1, 3)), graph.constant((5,))],
        (1, 4, 4, 5),
        "Conv2DOptions",
        padding=1,
        strideH=1,
        strideW=1,
    )
    hub = graph.transpose(conv, (0, 3, 1, 2))
    flat = graph.emit("RESHAPE", [hub, graph.numbers((1, 5, 16))], (1, 5, 16))
    tokens = graph.transpose(flat, (0, 2, 1))
    graph.emit("SOFTMAX", [tokens], tokens.shape, "SoftmaxOptions", beta=1.0)
    result = relayout(graph.writer, graph.inputs, outputs(graph))
    assert [o.code for o in result.writer.operations] == ["CONV_2D", "RESHAPE", "SOFTMAX"]


def test_what_is_left_says_why() -> None:
    graph = Graph(np.random.default_rng(0))
    x = graph.input((1, 3, 4, 4))
    last = graph.transpose(x, (0, 2, 3, 1))
    graph.emit(
        "CONV_2D",
        [last, graph.constant((5, 1, 1, 3)), graph.constant((5,))],
        (1, 4, 4, 5),
        "Conv2DOptions",
        padding=1,
        strideH=1,
        strideW=1,
    )
    result = relayout(graph.writer, graph.inputs, outputs(graph))
    assert [one.elements for one in result.moved] == [48]
    assert "from input 'x0' for CONV_2D of" in result.moved[0].why


def test_outputs_that_are_inputs_get_tensors_of_their_own() -> None:
    graph = Graph(np.random.default_rng(0))
    x = graph.input((2, 3))
    back = graph.transpose(graph.transpose(x, (1, 0)), (1, 0))
    result = relayout(graph.writer, graph.inputs, [("y0", back), ("y1", back)])
    assert len({t.index for _, t in (*result.inputs, *result.outputs)}) == 3
    assert layout.identity(2) == (0, 1)


@pytest.mark.parametrize("shape", ((1, 5), (5,), (1, 5, 1)))
def test_a_reduction_drops_its_axes_itself(shape: tuple[int, ...]) -> None:
    """Only where the RESHAPE drops exactly what was reduced, and nothing else reads what lies between."""
    graph = Graph(np.random.default_rng(0))
    x = graph.input((1, 4, 4, 5))
    mean = graph.emit("MEAN", [x, graph.numbers([1, 2])], (1, 1, 1, 5), "ReducerOptions", keepDims=True)
    flat = graph.emit("RESHAPE", [mean, graph.numbers(shape)], shape)
    graph.emit("RELU", [flat], flat.shape)
    result = relayout(graph.writer, graph.inputs, outputs(graph))
    codes = [operation.code for operation in result.writer.operations]
    assert codes == (["MEAN", "RELU"] if shape == (1, 5) else ["MEAN", "RESHAPE", "RELU"])
    np.testing.assert_array_equal(
        execute(result.writer, result.inputs, result.outputs)[0],
        execute(graph.writer, graph.inputs, outputs(graph))[0],
    )


def test_a_reduction_with_another_reader_keeps_its_axes() -> None:
    graph = Graph(np.random.default_rng(0))
    x = graph.input((1, 4, 4, 5))
    mean = graph.emit("MEAN", [x, graph.numbers([1, 2])], (1, 1, 1, 5), "ReducerOptions", keepDims=True)
    graph.emit("RESHAPE", [mean, graph.numbers((1, 5))], (1, 5))
    graph.emit("MUL", [x, mean], x.shape, "MulOptions")
    result = relayout(graph.writer, graph.inputs, outputs(graph))
    assert sorted(operation.code for operation in result.writer.operations) == ["MEAN", "MUL", "RESHAPE"]


def test_a_tensor_with_more_readers_than_an_array_has_axes() -> None:
    writer = GraphWriter()
    x = writer.tensor("x", (1, 2, 3, 4), np.dtype(np.float32))
    made = [writer.tensor(f"y{i}", (4,), np.dtype(np.int32)) for i in range(100)]
    for y in made:
        writer.operator("SHAPE", [x], [y], "ShapeOptions")
    named = [(writer.name(y), y) for y in made]
    result = relayout(writer, [("x", x)], named)
    assert result.proven and result.cost == 0 and len(result.writer.operations) == 100
