"""What a pass is, what a rewrite is, and the engine that applies rewrites."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import onnx_ir as ir

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PassResult:
    """``model`` may be the object that went in, changed, or a new one; ``modified`` says whether anything changed."""

    model: ir.Model
    modified: bool


class Pass(Protocol):
    """One step of a pipeline. It may work in place: ``clean_up`` hands it a copy of the caller's model."""

    name: str

    def __call__(self, model: ir.Model) -> PassResult: ...


M = TypeVar("M")


class Rewrite(ABC, Generic[M]):
    """Replaces one small pattern of nodes; an instance is a ``Pass``.

    ``op_types`` are the operators of the pattern's last node, ``M`` is what ``pattern`` found. A rewrite must leave
    the model's outputs equal up to float32 rounding, and must not match what it has produced.
    """

    name: str
    op_types: frozenset[str]

    @abstractmethod
    def pattern(self, node: ir.Node) -> M | None:
        """The match that ends in ``node``, or None where the operators do not line up."""

    @abstractmethod
    def check(self, match: M) -> str | None:
        """Why this match must be left alone, or None."""

    @abstractmethod
    def rewrite(self, graph: ir.Graph, match: M) -> None:
        """Replace the match."""

    def __call__(self, model: ir.Model) -> PassResult:
        count = sum(self._apply(model.graph, node) for node in list(model.graph))
        if count:
            log.debug("%s: %d place(s)", self.name, count)
        return PassResult(model, count > 0)

    def _apply(self, graph: ir.Graph, node: ir.Node) -> bool:
        # An earlier match of this walk may have taken the node out of the graph.
        if node.graph is not graph or node.domain != "" or node.op_type not in self.op_types:
            return False
        match = self.pattern(node)
        if match is None:
            return False
        reason = self.check(match)
        if reason is not None:
            log.debug("%s leaves %s %r alone: %s", self.name, node.op_type, node.name, reason)
            return False
        self.rewrite(graph, match)
        return True
