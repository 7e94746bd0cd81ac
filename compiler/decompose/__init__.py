"""Decompositions: an operator that a format lacks, written in operators that it has. All formats share them.

An exporter that refuses a node asks ``settle`` to replace it by simpler nodes and tries again. Our own decompositions are in ops/,
one file per family; operators that the ONNX standard defines as functions need none: their function body is used.
"""

from __future__ import annotations

from compiler.decompose.settle import settle

__all__ = ["settle"]
