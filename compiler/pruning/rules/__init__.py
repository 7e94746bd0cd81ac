"""Coupling rules, one module per operator family; importing this package registers them all."""

from __future__ import annotations

from compiler.pruning.rules import elementwise, layout, spatial, weighted

__all__ = ["elementwise", "layout", "spatial", "weighted"]
