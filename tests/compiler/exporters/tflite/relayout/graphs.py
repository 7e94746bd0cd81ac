"""Random TFLite graphs with transposes in them, and their execution."""

from __future__ import annotations

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
    rank, axis = len(x.shape), int(rng.integers(len(x.shape)))
    like = [t for t in graph.live if t.shape == x.shape]
    other = like[int(rng.integers(len(like)))]
    if kind == "transpose":
        graph.transpose(x, tuple(int(a) for a in rng.permutation(rank)))
    elif kind == "unary":
        graph.emit("RELU", [x], x.shape)
    elif kind == "binary":
        graph.emit("ADD", [x, other], x.shape, "AddOptions")
    elif kind == "maximum":
        graph.emit("MAXIMUM", [other, x], x.shape)
    elif kind == "constant":
        graph.emit("MUL", [x, graph.constant(x.shape[int(rng.integers(rank)) :])], x.shape, "MulOptions")
    elif kind == "concat":
        shape = tuple(n * 2 if a == axis else n for a, n in enumerate(x.shape))
        graph.emit("CONCATENATION", [x, other], shape, "ConcatenationOptions", axis=axis)
    elif kind == "pad":
        pairs = rng.integers(0, 2, (rank, 2))
        shape = tuple(int(n + pair.sum()) for n, pair in zip(x.shape, pairs, strict=True))
        graph.emit("PAD", [x, graph.numbers(pairs)], shape, "PadOptions")
    elif kind == "mean":
        keep = bool(rng.integers(2)) or rank <= 2
        shape = tuple(1 if a == axis else n for a, n in enumerate(x.shape) if keep or a != axis)
        graph.emit("MEAN", [x, graph.numbers([axis])], shape, "ReducerOptions", keepDims=keep)
    elif kind == "softmax":
        graph.emit("SOFTMAX", [x], x.shape, "SoftmaxOptions", beta=1.0)
    elif kind == "reshape":
        at = int(rng.integers(rank - 1))
        merged = (*x.shape[:at], x.shape[at] * x.shape[at + 1], *x.shape[at + 2 :])
        shape = merged if rank > 2 and rng.integers(2) else (*x.shape[:at], 1, *x.shape[at:])
        if len(shape) <= 4:
            graph.emit("RESHAPE", [x, graph.numbers(shape)], shape)
    elif kind == "slice":
        begin = [int(n > 1) if a == axis else 0 for a, n in enumerate(x.shape)]
        shape = tuple(n - b for n, b in zip(x.shape, begin, strict=True))
        graph.emit(
            "STRIDED_SLICE",
            [x, graph.numbers(begin), graph.numbers(x.shape), graph.numbers([1] * rank)],
            shape,
            "StridedSliceOptions",
            endMask=1 << axis,
        )
    elif kind == "split" and x.shape[axis] > 1:
        sizes = [1, x.shape[axis] - 1]
        made = [
            graph.writer.tensor("s", tuple(s if a == axis else n for a, n in enumerate(x.shape)), FLOAT) for s in sizes
        ]
        graph.writer.operator(
            "SPLIT_V", [x, graph.numbers(sizes), graph.numbers(axis)], made, "SplitVOptions", numSplits=2
        )
        graph.live += made
    elif kind == "matmul" and rank >= 2:
        graph.emit("BATCH_MATMUL", [x, other], (*x.shape[:-1], x.shape[-2]), "BatchMatMulOptions", adjY=True)
    elif kind == "gather":
        order = rng.integers(0, x.shape[axis], 3)
        graph.emit(
            "GATHER",
            [x, graph.numbers(order)],
            tuple(3 if a == axis else n for a, n in enumerate(x.shape)),
            "GatherOptions",
            axis=axis,
        )
    elif kind == "pick" and rank > 2:
        graph.emit(
            "GATHER",
            [x, graph.numbers(0)],
            tuple(n for a, n in enumerate(x.shape) if a != axis),
            "GatherOptions",
            axis=axis,
        )
    elif kind == "dense":
        weight = graph.constant((2, x.shape[-1]))
        graph.emit(
            "FULLY_CONNECTED",
            [x, weight, graph.constant((2,))],
            (*x.shape[:-1], 2),
            "FullyConnectedOptions",
            keepNumDims=True,
        )
    elif kind == "conv" and rank == 4:
        graph.emit(
            "CONV_2D",
            [x, graph.constant((2, 1, 1, x.shape[3])), graph.constant((2,))],
            (*x.shape[:3], 2),
            "Conv2DOptions",
            padding=1,
            strideH=1,
            strideW=1,
        )


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
