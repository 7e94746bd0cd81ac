"""What only a run can tell: the true shapes of all tensors, and the values of those that no input reaches.

A file made for a free batch size holds placeholders for the shapes behind it, and computes others from them while it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import SourceError
from compiler.importers.tflite.reader import Graph
from runtimes.errors import InferenceFailed
from runtimes.isolation import run_isolated
from runtimes.session import Array

_SHAPES_ONLY = ("SHAPE", "RANK")  # their result depends on no element of the input
TIMEOUT_S = 600.0


def settle_graph(path: Path, graph: Graph, shapes: Mapping[int, tuple[int, ...]]) -> Graph:
    """The graph with the shapes that it has when its inputs have ``shapes`` (by tensor index), free of what is then constant.

    Raises:
        SourceError: LiteRT cannot run the file at these shapes.
        ChildFailed: it crashed.
    """
    fixed = _independent(graph)
    try:
        found, values = run_isolated(
            "compiler.importers.tflite.settling:execute",
            {"path": str(path), "shapes": dict(shapes), "wanted": sorted(fixed)},
            timeout_s=TIMEOUT_S,
        )
    except InferenceFailed as error:
        raise SourceError(error.message, remedy=error.remedy) from error
    tensors = tuple(
        replace(t, shape=found.get(i, t.shape), data=values.get(i, t.data)) for i, t in enumerate(graph.tensors)
    )
    left = tuple(o for o in graph.operators if not set(o.outputs) <= fixed)
    return replace(graph, tensors=tensors, operators=left)


def _independent(graph: Graph) -> set[int]:
    """Tensors that operators compute from constants and shapes alone."""
    known = {i for i, tensor in enumerate(graph.tensors) if tensor.data is not None}
    computed: set[int] = set()
    for operator in graph.operators:  # in the order of execution
        inputs = {i for i in operator.inputs if i >= 0}
        quantized = any(graph.tensors[i].quantization is not None for i in (*inputs, *operator.outputs))
        if (operator.type in _SHAPES_ONLY or inputs <= known) and not quantized:
            known.update(operator.outputs)
            computed.update(operator.outputs)
    return computed


def execute(
    path: str, shapes: Mapping[int, tuple[int, ...]], wanted: Sequence[int]
) -> tuple[dict[int, tuple[int, ...]], dict[int, Array]]:
    """Run the file once. Returns every tensor's shape and the values of ``wanted``.

    Raises:
        InferenceFailed: LiteRT refuses the shapes or an operator fails.
    """
    from ai_edge_litert import interpreter as litert

    # Delegates keep what lies between their operators to themselves.
    resolver = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter: Any = litert.Interpreter(
            model_path=path, experimental_op_resolver_type=resolver, experimental_preserve_all_tensors=True
        )
        for index, shape in shapes.items():
            interpreter.resize_tensor_input(index, list(shape))
        interpreter.allocate_tensors()
        _invoke(interpreter)
        details = interpreter.get_tensor_details()
        return (
            {int(d["index"]): tuple(int(size) for size in d["shape"]) for d in details},
            {index: interpreter.get_tensor(index) for index in wanted},
        )
    except (RuntimeError, ValueError) as error:
        raise InferenceFailed(
            f"LiteRT cannot run {path} on inputs of shape {[list(s) for s in shapes.values()]}: {' '.join(str(error).split())}.",
            remedy="Give the shapes that the file was written for.",
        ) from error


def _invoke(interpreter: Any) -> None:
    """Run on zeros, which are valid indices; where zero is what an operator refuses (a divisor), on ones."""
    for fill in (0, 1):
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], np.full(detail["shape"], fill, detail["dtype"]))
        try:
            interpreter.invoke()
            return
        except RuntimeError:
            if fill == 1:
                raise
