"""Random TFLite graphs with transposes in them, and their execution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.tensors import Tensor
from compiler.exporters.tflite.writer import GraphWriter

Array = NDArray[Any]
FLOAT = np.dtype(np.float32)
KINDS = (
    *(
        "transpose",
        "transpose",
        "transpose",
        "unary",
        "binary",
        "constant",
        "concat",
        "pad",
        "mean",
        "softmax",
        "reshape",
    ),
    *("slice", "split", "matmul", "gather", "pick", "dense", "conv", "maximum"),
)


@dataclass
class Graph:
    """A graph under construction: ``live`` are the tensors that operators may read."""

    rng: np.random.Generator
    writer: GraphWriter = field(default_factory=GraphWriter)
    live: list[Tensor] = field(default_factory=list)
    inputs: list[tuple[str, Tensor]] = field(default_factory=list)

    def input(self, shape: tuple[int, ...]) -> Tensor:
        tensor = self.writer.tensor(f"x{len(self.inputs)}", shape, FLOAT)
        self.inputs.append((f"x{len(self.inputs)}", tensor))
        self.live.append(tensor)
        return tensor

    def constant(self, shape: tuple[int, ...]) -> Tensor:
        return self.writer.constant("c", self.rng.standard_normal(shape).astype(np.float32))

    def numbers(self, values: Any) -> Tensor:
        return self.writer.constant("n", np.asarray(values, np.int32))

    def emit(
        self, code: str, inputs: list[Tensor | None], shape: tuple[int, ...], options: str | None = None, **fields: Any
    ) -> Tensor:
        out = self.writer.tensor("t", shape, FLOAT)
        self.writer.origin = f"n{len(self.writer.operations)}"
        self.writer.operator(code, inputs, [out], options, **fields)
        self.live.append(out)
        return out

    def transpose(self, x: Tensor, perm: tuple[int, ...]) -> Tensor:
        return self.emit("TRANSPOSE", [x, self.numbers(perm)], layout.permuted(x.shape, perm))


def random_graph(seed: int, size: int, rank: int = 3) -> Graph:
    """``size`` operators on two inputs of rank 3 or 4; every tensor that nothing reads becomes an output."""
    graph = Graph(np.random.default_rng(seed))
    shape = tuple(int(n) for n in graph.rng.integers(2, 5, rank))
    graph.input(shape)
    graph.input(shape)
    while len(graph.writer.operations) < size:
        _step(graph, KINDS[int(graph.rng.integers(len(KINDS)))])
    return graph


def outputs(graph: Graph) -> list[tuple[str, Tensor]]:
    read = {t.index for o in graph.writer.operations for t in o.inputs if t is not None}
    made = [t for o in graph.writer.operations for t in o.outputs if t.index not in read]
    return [(f"y{i}", t) for i, t in enumerate(made)]


def _step(graph: Graph, kind: str) -> None:
    rng = graph.rng
    x = graph.live[int(rng.integers(len(graph.live)))]
    axis = int(rng.integers(len(x.shape)))
    like = [t for t in graph.live if t.shape == x.shape]
    STEPS[kind](graph, x, like[int(rng.integers(len(like)))], axis)


def _transpose(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    graph.transpose(x, tuple(int(a) for a in graph.rng.permutation(len(x.shape))))


def _unary(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    graph.emit("RELU", [x], x.shape)


def _binary(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    graph.emit("ADD", [x, other], x.shape, "AddOptions")


def _maximum(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    graph.emit("MAXIMUM", [other, x], x.shape)


def _constant(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    factor = graph.constant(x.shape[int(graph.rng.integers(len(x.shape))) :])
    graph.emit("MUL", [x, factor], x.shape, "MulOptions")


def _concat(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    graph.emit("CONCATENATION", [x, other], _sized(x, axis, 2 * x.shape[axis]), "ConcatenationOptions", axis=axis)


def _pad(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    pairs = graph.rng.integers(0, 2, (len(x.shape), 2))
    shape = tuple(int(n + pair.sum()) for n, pair in zip(x.shape, pairs, strict=True))
    graph.emit("PAD", [x, graph.numbers(pairs)], shape, "PadOptions")


def _mean(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    keep = bool(graph.rng.integers(2)) or len(x.shape) <= 2
    shape = _sized(x, axis, 1) if keep else _without(x, axis)
    graph.emit("MEAN", [x, graph.numbers([axis])], shape, "ReducerOptions", keepDims=keep)


def _softmax(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    graph.emit("SOFTMAX", [x], x.shape, "SoftmaxOptions", beta=1.0)


def _reshape(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    at = int(graph.rng.integers(len(x.shape) - 1))
    merged = (*x.shape[:at], x.shape[at] * x.shape[at + 1], *x.shape[at + 2 :])
    shape = merged if len(x.shape) > 2 and graph.rng.integers(2) else (*x.shape[:at], 1, *x.shape[at:])
    if len(shape) <= 4:
        graph.emit("RESHAPE", [x, graph.numbers(shape)], shape)


def _slice(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    begin = [int(n > 1) if a == axis else 0 for a, n in enumerate(x.shape)]
    shape = tuple(n - b for n, b in zip(x.shape, begin, strict=True))
    arguments = [graph.numbers(values) for values in (begin, x.shape, [1] * len(x.shape))]
    graph.emit("STRIDED_SLICE", [x, *arguments], shape, "StridedSliceOptions", endMask=1 << axis)


def _split(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    if x.shape[axis] == 1:
        return
    sizes = [1, x.shape[axis] - 1]
    made = [graph.writer.tensor("s", _sized(x, axis, size), FLOAT) for size in sizes]
    arguments = [x, graph.numbers(sizes), graph.numbers(axis)]
    graph.writer.operator("SPLIT_V", arguments, made, "SplitVOptions", numSplits=2)
    graph.live += made


def _matmul(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    if len(x.shape) >= 2:
        graph.emit("BATCH_MATMUL", [x, other], (*x.shape[:-1], x.shape[-2]), "BatchMatMulOptions", adjY=True)


def _gather(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    order = graph.numbers(graph.rng.integers(0, x.shape[axis], 3))
    graph.emit("GATHER", [x, order], _sized(x, axis, 3), "GatherOptions", axis=axis)


def _pick(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    if len(x.shape) > 2:
        graph.emit("GATHER", [x, graph.numbers(0)], _without(x, axis), "GatherOptions", axis=axis)


def _dense(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    weight = graph.constant((2, x.shape[-1]))
    inputs = [x, weight, graph.constant((2,))]
    graph.emit("FULLY_CONNECTED", inputs, (*x.shape[:-1], 2), "FullyConnectedOptions", keepNumDims=True)


def _conv(graph: Graph, x: Tensor, other: Tensor, axis: int) -> None:
    if len(x.shape) == 4:
        inputs = [x, graph.constant((2, 1, 1, x.shape[3])), graph.constant((2,))]
        graph.emit("CONV_2D", inputs, (*x.shape[:3], 2), "Conv2DOptions", padding=1, strideH=1, strideW=1)


def _sized(x: Tensor, axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if a == axis else n for a, n in enumerate(x.shape))


def _without(x: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(n for a, n in enumerate(x.shape) if a != axis)


# From a graph, a tensor, another of its shape (perhaps the same) and one of its axes.
Step = Callable[[Graph, Tensor, Tensor, int], None]
STEPS: dict[str, Step] = {
    "transpose": _transpose,
    "unary": _unary,
    "binary": _binary,
    "maximum": _maximum,
    "constant": _constant,
    "concat": _concat,
    "pad": _pad,
    "mean": _mean,
    "softmax": _softmax,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "matmul": _matmul,
    "gather": _gather,
    "pick": _pick,
    "dense": _dense,
    "conv": _conv,
}


def execute(writer: GraphWriter, inputs: list[tuple[str, Tensor]], results: list[tuple[str, Tensor]]) -> list[Array]:
    """The outputs on inputs that depend on their shapes alone, from LiteRT's own kernels (no delegate: it regroups sums)."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    content = bytes(writer.finish(inputs, results, description="test", metadata={}))
    resolver = OpResolverType.BUILTIN_REF
    interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    for detail, (name, _) in zip(interpreter.get_input_details(), inputs, strict=True):
        shape = tuple(detail["shape"])
        seed = int(name.removeprefix("x"))
        interpreter.set_tensor(detail["index"], np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
