"""From the flow's numbers to groups of channels that can leave, and what a cut costs and saves."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod

import numpy as np
import onnx_ir as ir

from compiler.errors import Refusal
from compiler.pruning.flow import Flow, Ids, name_of, shape_of
from compiler.pruning.types import Role, Size


@dataclass(frozen=True, slots=True)
class Candidate:
    """A group before anything is decided. ``classes`` in the order of the largest producer's output positions.

    ``sources`` holds, per producer, its classes: none of them may end empty.
    """

    name: str
    classes: tuple[int, ...]
    removable: frozenset[int]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    sources: tuple[frozenset[int], ...]


def keep_named(flow: Flow, patterns: Iterable[str]) -> None:
    """Pin the channels of producers whose node name matches a pattern."""
    nodes = {name_of(node): node for node in flow.model.graph}
    for pattern in patterns:
        for name, ids in flow.sources.items():
            if fnmatchcase(name, pattern):
                flow.pin(ids, nodes[name], f"the caller keeps {pattern!r}")


def find_groups(flow: Flow) -> tuple[list[Candidate], list[Refusal]]:
    """Groups with at least one removable channel, and one refusal per group (and reason) that has pinned ones."""
    pinned: dict[int, Refusal] = {}
    for number, refusal in sorted(flow.pins.items()):
        pinned.setdefault(flow.root(number), refusal)
    sources = {name: flow.roots(ids) for name, ids in flow.sources.items()}
    candidates: list[Candidate] = []
    refusals: dict[tuple[str, str], Refusal] = {}
    for members in _components(sources):
        leader = max(members, key=lambda name: len(sources[name]))
        ordered = [leader, *(name for name in members if name != leader)]
        classes = tuple(dict.fromkeys(int(c) for name in ordered for c in sources[name]))
        for refusal in (pinned[c] for c in classes if c in pinned):
            told = replace(refusal, node=leader, op_type=_op_type(flow, leader), reason=_reason(refusal, leader))
            refusals.setdefault((leader, told.reason), told)
        removable = frozenset(c for c in classes if c not in pinned)
        consumers = _consumers(flow, set(classes))
        if removable and consumers:
            parts = tuple(frozenset(int(c) for c in sources[name]) for name in members)
            candidates.append(Candidate(leader, classes, removable, tuple(members), consumers, parts))
    return candidates, list(refusals.values())


def _reason(refusal: Refusal, leader: str) -> str:
    where = "" if refusal.node in (leader, "graph") else f" (at {refusal.op_type} {refusal.node!r})"
    return f"its {'group' if where else 'output'} stays whole: {refusal.reason}{where}"


def _op_type(flow: Flow, name: str) -> str:
    return next(node.op_type for node in flow.model.graph if name_of(node) == name)


def _components(sources: dict[str, Ids]) -> list[list[str]]:
    """Producers that share a class, in graph order."""
    component: dict[str, int] = {}
    owner: dict[int, str] = {}
    merged: dict[int, list[str]] = {}
    for index, (name, classes) in enumerate(sources.items()):
        touched = {component[owner[c]] for c in classes.tolist() if c in owner}
        members = [member for key in sorted(touched) for member in merged.pop(key)] + [name]
        merged[index] = members
        component.update(dict.fromkeys(members, index))
        owner.update(dict.fromkeys(classes.tolist(), name))
    order = {name: position for position, name in enumerate(sources)}
    return [sorted(members, key=order.__getitem__) for members in merged.values()]


def _consumers(flow: Flow, classes: Collection[int]) -> tuple[str, ...]:
    reading = (b for b in flow.bindings if b.role is Role.CONSUMES)
    return tuple(dict.fromkeys(b.node for b in reading if any(c in classes for c in flow.roots(b.ids).tolist())))


class Sizer:
    """Parameters and multiply-accumulates of the model after any cut, without performing it."""

    def __init__(self, flow: Flow) -> None:
        self._axes: dict[str, dict[int, Ids]] = {}
        for binding in flow.bindings:
            self._axes.setdefault(binding.initializer, {})[binding.axis] = flow.roots(binding.ids)
        graph = flow.model.graph
        self._shapes = {name: shape_of(value) or () for name, value in graph.initializers.items() if _is_float(value)}
        self._work = [(weight, rows) for node in graph for weight, rows in _weighted(node)]

    def size(self, removed: Collection[int]) -> Size:
        gone = np.fromiter(removed, dtype=np.int64, count=len(removed))
        elements = {name: self._elements(name, shape, gone) for name, shape in self._shapes.items()}
        macs = sum(elements.get(weight, 0) * rows for weight, rows in self._work)
        return Size(sum(elements.values()), macs)

    def _elements(self, name: str, shape: tuple[int, ...], gone: Ids) -> int:
        axes = self._axes.get(name, {})
        return prod(int((~np.isin(axes[i], gone)).sum()) if i in axes else size for i, size in enumerate(shape))


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _weighted(node: ir.Node) -> Iterable[tuple[str, int]]:
    """(weight, how often each of its elements is used): output positions of a convolution, rows of a product."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.inputs) < 2:
        return
    weight = node.inputs[1]
    positions = shape_of(node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0])
    if weight is None or positions is None:
        return
    convolution = node.op_type in ("Conv", "ConvTranspose")
    yield weight.name or "", positions[0] * prod(positions[2:]) if convolution else prod(positions[:-1])
