"""Scopes: which nodes or values an exception is for, as regular expressions over whole names, or ``op:TYPE``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Final

import onnx_ir as ir

from compiler.errors import DataError
from compiler.quantization.structure import name_of, value_name

BY_TYPE: Final = "op:"


def nodes_in(model: ir.Model, scopes: Sequence[str]) -> tuple[str, ...]:
    """Names of the nodes in any of ``scopes``, sorted.

    Raises:
        DataError: a scope is no regular expression, or has nothing in it.
    """
    return tuple(sorted({name_of(node) for scope in scopes for node in _nodes(model, scope)}))


def values_in(model: ir.Model, scopes: Sequence[str]) -> tuple[str, ...]:
    """Names of the values in any of ``scopes``, sorted; a node stands for its outputs. Raises DataError as ``nodes_in``."""
    names = [value_name(v) for v in model.graph.inputs]
    names += [value_name(o) for node in model.graph for o in node.outputs if o.name]
    found: set[str] = set()
    for scope in scopes:
        chosen = set() if scope.startswith(BY_TYPE) else {name for name in names if _pattern(scope).fullmatch(name)}
        chosen |= {value_name(o) for n in _nodes(model, scope, required=not chosen) for o in n.outputs if o.name}
        found |= chosen
    return tuple(sorted(found))


def _nodes(model: ir.Model, scope: str, *, required: bool = True) -> list[ir.Node]:
    belongs: Callable[[ir.Node], bool]
    if scope.startswith(BY_TYPE):
        wanted = scope.removeprefix(BY_TYPE)
        belongs, names = lambda node: node.op_type == wanted, {node.op_type for node in model.graph}
    else:
        pattern = _pattern(scope)
        belongs = lambda node: pattern.fullmatch(name_of(node)) is not None  # noqa: E731
        wanted, names = scope, {name_of(node) for node in model.graph}
    found = [node for node in model.graph if belongs(node)]
    if required and not found:
        raise DataError(f"Nothing in the model is in scope {scope!r}.", remedy=_remedy(wanted, names))
    return found


def _pattern(scope: str) -> re.Pattern[str]:
    try:
        return re.compile(scope)
    except re.error as error:
        raise DataError(
            f"The scope {scope!r} is no regular expression: {error}.",
            remedy="Escape special characters with a backslash.",
        ) from error


def _remedy(wanted: str, names: Iterable[str]) -> str:
    near = get_close_matches(wanted, names, n=3)
    hint = f", for instance {', '.join(near)}" if near else ""
    return f"Give a regular expression for the whole name of a node{hint}, or op:TYPE; --dry-run lists the nodes."
