"""Operators as variables whose values are the ways to run them, tensors as tables of what the transposes between them cost.

A TRANSPOSE of the graph is no operator here: its output is its input seen in another order ("frame"). Whatever reads either
reads the same root, so that a copy in one order is paid once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.relayout.config import Config, Port, ports, tensor_at
from compiler.exporters.tflite.relayout.families import family
from compiler.exporters.tflite.tensors import Tensor
from compiler.exporters.tflite.writer import Operation

MAX_ORDERS = 12  # candidates per tensor, those nearest to the orders that the graph asks for first


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as ``transpose(root, frame)`` of a tensor that an operator wrote or that is a graph input."""

    root: int
    frame: Perm

    def outward(self, perm: Perm) -> Perm:
        """An order of this view in the root's axes."""
        return tuple(self.frame[axis] for axis in perm)

    def inward(self, perm: Perm) -> Perm:
        """An order of the root in this view's axes."""
        return tuple(self.frame.index(axis) for axis in perm)


@dataclass(slots=True)
class Root:
    """A tensor that exists, its writer and readers: (operator, port, how the operator sees it)."""

    tensor: Tensor
    writer: tuple[int, Port] | None = None
    readers: list[tuple[int, Port]] = field(default_factory=list)
    demanded: list[Perm] = field(default_factory=list)  # by graph outputs


@dataclass(slots=True)
class Problem:
    """``configs`` per operator, the first being the order it has now."""

    operations: list[Operation]
    views: dict[int, View]
    roots: dict[int, Root]
    configs: list[list[Config]] = field(default_factory=list)

    def order(self, operator: int, port: Port, config: Config) -> Perm:
        """What ``config`` asks of the root that the port reads or writes, in the root's axes."""
        view = self.views[tensor_at(self.operations[operator], port).index]
        return view.outward(config.order(port))


def build(operations: Sequence[Operation], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Problem:
    """The problem of a graph."""
    problem = Problem([], {}, {})
    for tensor in inputs:
        _add_root(problem, tensor, None)
    for operation in operations:
        if _is_view(operation):
            source, order = operation.inputs[0], operation.inputs[1]
            assert source is not None and order is not None and order.data is not None
            view = problem.views[source.index]
            frame = view.outward(tuple(int(axis) for axis in order.data))
            problem.views[operation.outputs[0].index] = View(view.root, frame)
            continue
        number = len(problem.operations)
        problem.operations.append(operation)
        for port in ports(operation):
            tensor = tensor_at(operation, port)
            if port.is_output:
                _add_root(problem, tensor, (number, port))
            else:
                problem.roots[problem.views[tensor.index].root].readers.append((number, port))
    for tensor in outputs:
        view = problem.views[tensor.index]
        problem.roots[view.root].demanded.append(view.frame)
    problem.configs = _candidates(problem)
    return problem


def _is_view(operation: Operation) -> bool:
    source, order = operation.inputs[0], operation.inputs[1] if len(operation.inputs) > 1 else None
    moved = operation.code == "TRANSPOSE" and source is not None and source.data is None
    return moved and order is not None and order.data is not None


def _add_root(problem: Problem, tensor: Tensor, writer: tuple[int, Port] | None) -> None:
    problem.views[tensor.index] = View(tensor.index, layout.identity(len(tensor.shape)))
    problem.roots[tensor.index] = Root(tensor, writer)


def _candidates(problem: Problem) -> list[list[Config]]:
    """Every operator's configs: the present one, and what the orders around it suggest, spread until nothing new comes."""
    configs: list[dict[Config, None]] = [{} for _ in problem.operations]
    known: dict[int, set[Perm]] = {root: set() for root in problem.roots}
    waiting: deque[tuple[int, Perm]] = deque()

    def offer(root: int, perm: Perm) -> None:
        if perm not in known[root] and len(known[root]) < MAX_ORDERS:
            known[root].add(perm)
            waiting.append((root, perm))

    for root, entry in problem.roots.items():
        offer(root, layout.identity(len(entry.tensor.shape)))
    for number, operation in enumerate(problem.operations):
        for port in ports(operation):  # the order that it has now comes first
            offer(*_seen(problem, number, port, layout.identity(len(tensor_at(operation, port).shape))))
    for entry in problem.roots.values():
        for perm in entry.demanded:
            offer(entry.tensor.index, perm)
    while waiting:
        root, perm = waiting.popleft()
        entry = problem.roots[root]
        for number, port in [*([entry.writer] if entry.writer else []), *entry.readers]:
            operation = problem.operations[number]
            own = problem.views[tensor_at(operation, port).index].inward(perm)
            for config in family(operation).propose(operation, port, own):
                if config not in configs[number]:
                    configs[number][config] = None
                    for other in ports(operation):
                        offer(*_seen(problem, number, other, config.order(other)))
    return [
        _present_first(operation, list(found)) for operation, found in zip(problem.operations, configs, strict=True)
    ]


def _seen(problem: Problem, number: int, port: Port, perm: Perm) -> tuple[int, Perm]:
    view = problem.views[tensor_at(problem.operations[number], port).index]
    return view.root, view.outward(perm)


def _present_first(operation: Operation, configs: list[Config]) -> list[Config]:
    def is_present(config: Config) -> bool:
        return all(config.order(port) == tuple(range(len(config.order(port)))) for port in ports(operation))

    present = [config for config in configs if is_present(config)]
    assert present, operation
    return present + [config for config in configs if not is_present(config)]
