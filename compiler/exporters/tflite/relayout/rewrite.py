"""The graph in its new orders: every operator written again, a TRANSPOSE only where two neighbours differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.relayout.config import Config, ports
from compiler.exporters.tflite.relayout.costs import descend, tables, total_cost
from compiler.exporters.tflite.relayout.elimination import minimise
from compiler.exporters.tflite.relayout.families import family
from compiler.exporters.tflite.relayout.fold import fold_reductions
from compiler.exporters.tflite.relayout.long_means import reduce_rows, rows
from compiler.exporters.tflite.relayout.problem import Problem, build
from compiler.exporters.tflite.tensors import Array, QuantParams, Tensor
from compiler.exporters.tflite.writer import GraphWriter, Operation

NamedTensor = tuple[str, Tensor]


@dataclass(frozen=True, slots=True)
class Moved:
    """One TRANSPOSE left: how many elements it moves, and why."""

    elements: int
    why: str


@dataclass(slots=True)
class Relayout:
    """A new graph that computes the same; ``proven``: no assignment of the orders considered costs less."""

    writer: GraphWriter
    inputs: list[NamedTensor]
    outputs: list[NamedTensor]
    cost: int
    proven: bool
    moved: list[Moved] = field(default_factory=list)


def relayout(writer: GraphWriter, inputs: Sequence[NamedTensor], outputs: Sequence[NamedTensor]) -> Relayout:
    """The graph of ``writer`` with the cheapest axis orders. Inputs and outputs keep theirs."""
    operations = fold_reductions(writer, {tensor.index for _, tensor in outputs})
    problem = build(operations, [t for _, t in inputs], [t for _, t in outputs])
    chosen, proven = _assign(problem)
    return write(writer, problem, chosen, inputs, outputs, proven=proven)


def _assign(problem: Problem) -> tuple[list[Config], bool]:
    """A config per operator, and whether it is proven that none costs less. Never costs more than the orders of now."""
    costs, exact = tables(problem)
    sizes = {number: len(configs) for number, configs in enumerate(problem.configs) if len(configs) > 1}
    solution = minimise(sizes, costs)
    chosen = [configs[solution.values.get(number, 0)] for number, configs in enumerate(problem.configs)]
    if solution.proven and exact:
        return chosen, True
    present = [configs[0] for configs in problem.configs]
    tries = [descend(problem, start) for start in (chosen, present)]
    return min(tries, key=lambda tried: total_cost(problem, tried)), False


def write(
    writer: GraphWriter,
    problem: Problem,
    chosen: Sequence[Config],
    inputs: Sequence[NamedTensor],
    outputs: Sequence[NamedTensor],
    *,
    proven: bool = False,
) -> Relayout:
    """The graph with operator ``i`` run as ``chosen[i]``."""
    result = Relayout(GraphWriter(), [], [], total_cost(problem, chosen), proven)
    rewriting = _Rewriting(writer, problem, result)
    for name, tensor in inputs:
        result.inputs.append((name, rewriting.declare(tensor, layout.identity(len(tensor.shape)))))
    for number, operation in enumerate(problem.operations):
        rewriting.operation(operation, chosen[number])
    taken = {tensor.index for _, tensor in result.inputs}
    for name, tensor in outputs:
        result.outputs.append((name, rewriting.output(name, tensor, taken)))
    return result


class _Rewriting:
    """The new tensor of every root, and the copies of it in other orders."""

    def __init__(self, old: GraphWriter, problem: Problem, result: Relayout) -> None:
        self._old, self._problem, self._result = old, problem, result
        self._new = result.writer
        self._stored: dict[int, tuple[Tensor, Perm]] = {}  # by root: the tensor written, and its order
        self._copies: dict[tuple[int, Perm], Tensor] = {}
        self._origin: dict[int, str] = {}

    def declare(self, root: Tensor, perm: Perm) -> Tensor:
        shape = layout.permuted(root.shape, perm)
        tensor = self._new.tensor(self._old.name(root), shape, root.dtype, root.quant, variable=root.variable)
        self._stored[root.index] = (tensor, perm)
        freed = self._old.freed(root.index)
        if freed is not None:
            self._new.free(tensor.index, *(layout.permuted(sizes, perm) for sizes in freed))
        return tensor

    def operation(self, operation: Operation, config: Config) -> None:
        self._new.origin = operation.origin
        rule = family(operation)
        reader = f"{operation.code} of {operation.origin!r}: {rule.why}"
        inputs = list(operation.inputs)
        for port in ports(operation):
            if not port.is_output:
                source = operation.inputs[port.index]
                assert source is not None
                inputs[port.index] = self._read(source, config.order(port), reader)
        made = rule.rewrite(operation, config, inputs, self._constant)
        arguments = [self._own(tensor, operation) for tensor in made.inputs]
        if operation.code == "RESHAPE" and self._pass_on(operation, config, arguments[0]):
            return
        outputs = [self.declare(tensor, config.outputs[i]) for i, tensor in enumerate(operation.outputs)]
        for tensor in outputs:
            self._origin[tensor.index] = f"{operation.code} of {operation.origin!r}"
        long = rows(made.code, arguments)
        if long is not None and arguments[0] is not None:
            reduce_rows(self._new, made.code, arguments[0], outputs[0], long)
            return
        self._new.operator(made.code, arguments, outputs, made.options, **made.fields)

    def _constant(self, name: str, data: Array, quant: QuantParams | None) -> Tensor:
        return self._new.constant(name, data, quant)

    def _own(self, tensor: Tensor | None, operation: Operation) -> Tensor | None:
        """Constants that a family handed through belong to the old graph."""
        if tensor is None or tensor.data is None or not any(tensor is old for old in operation.inputs):
            return tensor
        return self._new.constant(self._old.name(tensor), tensor.data, tensor.quant)

    def _pass_on(self, operation: Operation, config: Config, source: Tensor | None) -> bool:
        """A RESHAPE to the shape that its input now has is nothing."""
        output = operation.outputs[0]
        if (
            source is None
            or source.data is not None
            or source.shape != layout.permuted(output.shape, config.outputs[0])
        ):
            return False
        self._stored[output.index] = (source, config.outputs[0])
        return True

    def _read(self, tensor: Tensor, perm: Perm, reader: str) -> Tensor:
        """``tensor`` in order ``perm``."""
        view = self._problem.views[tensor.index]
        stored, have = self._stored[view.root]
        move = layout.relative(have, view.outward(perm))
        if move == layout.identity(len(move)):
            return stored
        if (stored.index, move) not in self._copies:
            self._copies[stored.index, move] = self._move(stored, move, reader)
        return self._copies[stored.index, move]

    def _move(self, source: Tensor, move: Perm, reader: str) -> Tensor:
        shape = layout.permuted(source.shape, move)
        result = self._new.tensor(f"{self._new.name(source)}/transposed", shape, source.dtype, source.quant)
        if layout.moves_nothing(source.shape, move):
            self._new.operator("RESHAPE", [source, self._numbers("shape", shape)], [result])
            return result
        self._new.operator("TRANSPOSE", [source, self._numbers("perm", move)], [result], to=source.dtype)
        written = self._origin.get(source.index, f"input {self._new.name(source)!r}")
        elements = int(np.prod(shape))
        self._result.moved.append(
            Moved(elements, f"{elements} elements, {list(source.shape)} to {list(shape)}, from {written} for {reader}")
        )
        return result

    def _numbers(self, name: str, values: Sequence[int]) -> Tensor:
        return self._new.constant(name, np.asarray(values, np.int32))

    def output(self, name: str, tensor: Tensor, taken: set[int]) -> Tensor:
        """The tensor of a graph output in its own order, one that no other output and no input is."""
        self._new.origin = name
        found = self._read(
            tensor, layout.identity(len(tensor.shape)), f"output {name!r}, which keeps the model's order"
        )
        if found.index in taken:
            copy = self._new.tensor(name, found.shape, found.dtype, found.quant)
            self._new.operator("RESHAPE", [found, self._numbers("shape", found.shape)], [copy])
            found = copy
        taken.add(found.index)
        self._new.rename(found, name)
        freed = self._old.freed(tensor.index)
        if freed is not None:
            self._new.free(found.index, *freed)
        return found
