"""Typed access to a node's attributes and optional inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)


def real(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    value = attribute.value
    return value.decode() if isinstance(value, bytes) else str(value)


def integers(node: ir.Node, name: str, default: list[int] | None = None) -> list[int] | None:
    attribute = node.attributes.get(name)
    return default if attribute is None else [int(size) for size in attribute.value]


def operand(node: ir.Node, position: int) -> ir.Value | None:
    """Input ``position``, or None if it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def first(node: ir.Node) -> ir.Value:
    value = operand(node, 0)
    assert value is not None, "the operator's definition has a first input"
    return value


def axis(node: ir.Node, rank: int, default: int) -> int:
    """Attribute ``axis``, counted from the front."""
    position = integer(node, "axis", default)
    return position + rank if position < 0 else position
