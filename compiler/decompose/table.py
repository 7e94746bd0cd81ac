"""DECOMPOSITIONS: our own decompositions by operator. Each family in ops/ adds its own."""

from __future__ import annotations

from collections.abc import Callable

from compiler.decompose.builder import Builder

Decomposition = Callable[[Builder], None]
DECOMPOSITIONS: dict[str, Decomposition] = {}


class Undecomposable(Exception):
    """This node, with these attributes and shapes, has no decomposition here; the refusal of the exporter stands."""


def decomposes(*op_types: str) -> Callable[[Decomposition], Decomposition]:
    """Register a function that writes the nodes of ``op_types`` into the builder. A second one for an operator is an error."""

    def register(function: Decomposition) -> Decomposition:
        for op_type in op_types:
            if op_type in DECOMPOSITIONS:
                raise ValueError(f"{op_type} has a decomposition already")
            DECOMPOSITIONS[op_type] = function
        return function

    return register
