"""Channel dependency analysis: every channel gets a number, and operators say which numbers must be one and the same.

A weighted node gives its output channels fresh numbers. A rule per operator carries the numbers from the inputs to the
outputs (``Labels``: one axis of a value, one number per position), unites numbers that must leave together (the two
sides of a residual Add) and pins numbers that must stay, with the reason. In the end a class of united numbers is one
removable channel: the positions that carry it are exactly what has to be cut, through flattening and concatenation too.
What no rule proves is pinned; nothing is guessed from shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.errors import Refusal
from compiler.pruning.types import Role

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """``ids[i]`` is the channel at position i of ``axis`` (never negative)."""

    axis: int
    ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """Axis ``axis`` of ``initializer``, as read by ``node``, is indexed by the channels ``ids``."""

    initializer: str
    node: str
    axis: int
    ids: Ids
    role: Role


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A number in ``node`` that counts the channels ``ids``: the group attribute, or entry ``index`` of a target shape."""

    node: str
    ids: Ids
    index: int | None = None


@dataclass(eq=False)
class Flow:
    """The state of the analysis; ``analyse`` fills it."""

    model: ir.Model
    labels: dict[str, Labels] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    sources: dict[str, Ids] = field(default_factory=dict)  # weighted node -> the channels that it makes
    pins: dict[int, Refusal] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=list)

    # Numbers ------------------------------------------------------------------------------------------------------

    def fresh(self, node: ir.Node, count: int) -> Ids:
        """New channels, made by ``node``."""
        ids = self.anonymous(count)
        self.sources[name_of(node)] = ids
        return ids

    def anonymous(self, count: int) -> Ids:
        """New channels that no weighted node makes."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    @property
    def count(self) -> int:
        return len(self._parent)

    def root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def roots(self, ids: Ids) -> Ids:
        return np.array([self.root(int(number)) for number in ids], dtype=np.int64)

    def unite(self, first: Ids, second: Ids) -> None:
        """Position by position, the two are one channel. The smaller number leads, so that results are stable."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self._parent[high] = low

    def pin(self, ids: Iterable[int], node: ir.Node | None, reason: str) -> None:
        """These channels stay; the first reason given for a channel is the one that is reported."""
        name, op_type = (name_of(node), node.op_type) if node is not None else ("graph", "graph")
        for number in ids:
            self.pins.setdefault(int(number), Refusal(name, op_type, reason, "prune"))

    # Values -------------------------------------------------------------------------------------------------------

    def of(self, value: ir.Value | None) -> Labels | None:
        return None if value is None else self.labels.get(value.name or "")

    def set(self, value: ir.Value, axis: int, ids: Ids) -> None:
        self.labels[value.name or ""] = Labels(axis, ids)

    def bind(self, value: ir.Value, node: ir.Node, axis: int, ids: Ids, role: Role) -> None:
        self.bindings.append(Binding(value.name or "", name_of(node), axis, ids, role))

    def give_up(self, node: ir.Node, reason: str) -> None:
        """Pin everything that enters ``node``; its outputs carry no channels."""
        for value in node.inputs:
            found = self.of(value)
            if found is not None:
                self.pin(found.ids, node, reason)


Rule = Callable[[Flow, ir.Node], None]
_RULES: dict[str, Rule] = {}


def couples(*op_types: str) -> Callable[[Rule], Rule]:
    """Register the rule of these operators. A rule either proves what it says about every position, or gives up."""

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            if op_type in _RULES:
                raise ValueError(f"the coupling rule of {op_type} is registered twice")
            _RULES[op_type] = rule
        return rule

    return register


def covered() -> list[str]:
    """Operators that have a rule."""
    return sorted(_RULES)


def analyse(model: ir.Model) -> Flow:
    """Walk the graph once in topological order and return the finished flow. The model is not modified."""
    import compiler.pruning.rules  # noqa: F401  (registers the rules)

    flow = Flow(model)
    for node in model.graph:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            flow.give_up(node, f"no coupling rule for {node.op_type}")
        else:
            rule(flow, node)
    _pin_outputs(flow)
    _pin_subgraphs(flow)
    _join_shared_initializers(flow)
    return flow


def _pin_outputs(flow: Flow) -> None:
    for value in flow.model.graph.outputs:
        found = flow.of(value)
        if found is not None:
            flow.pin(found.ids, value.producer(), f"its channels are the graph output {value.name!r}")


def _pin_subgraphs(flow: Flow) -> None:
    """A subgraph can read any outer value without naming it as an input: then nothing is provable."""
    for node in flow.model.graph:
        if any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            flow.pin(range(flow.count), node, "a subgraph may read any value of the graph")


def _join_shared_initializers(flow: Flow) -> None:
    """An initializer that several nodes read must be cut for all of them in the same way, or not at all."""
    by_axis: dict[tuple[str, int], list[Binding]] = {}
    for binding in flow.bindings:
        by_axis.setdefault((binding.initializer, binding.axis), []).append(binding)
    for (name, _), bindings in by_axis.items():
        for other in bindings[1:]:
            flow.unite(bindings[0].ids, other.ids)
        value = flow.model.graph.initializers[name]
        if len(bindings) != len(list(value.uses())) or value in flow.model.graph.outputs:
            flow.pin(bindings[0].ids, None, f"initializer {name!r} is also read where its channels cannot be followed")


# Helpers of the rules ---------------------------------------------------------------------------------------------


def name_of(node: ir.Node) -> str:
    return node.name or (node.outputs[0].name or "")


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape, or None."""
    if value is None or value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return None
    return tuple(int(d) for d in value.shape if isinstance(d, int))


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The initializer's array, or None if ``value`` is absent or computed."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def operand(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
