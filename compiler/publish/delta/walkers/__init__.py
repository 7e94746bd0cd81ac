"""Where the tensors lie in a model file. Only the encoder asks: the patch carries the answer in its segment table.

Adding a format is one module with ``walk(data) -> list[TensorRange]`` and one line in WALKERS. A walker may be wrong about a
type or miss a tensor: the delta grows, the result stays exact.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable

from compiler.publish.delta.walkers.base import TensorRange
from compiler.publish.delta.walkers.mlpackage import walk_zip
from compiler.publish.delta.walkers.onnx import walk_onnx
from compiler.publish.delta.walkers.tflite import walk_tflite

log = logging.getLogger(__name__)

# What a file begins with decides; ONNX has no magic number and comes last.
WALKERS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], list[TensorRange]]], ...] = (
    ("tflite", lambda data: data[4:8] == b"TFL3", walk_tflite),
    ("zip", lambda data: data[:4] == b"PK\x03\x04", walk_zip),
    ("onnx", lambda data: data[:1] == b"\x08", walk_onnx),  # field 1, ir_version, which every writer puts first
)


def find_tensors(data: bytes) -> list[TensorRange]:
    """Tensor ranges in file order, without overlaps; empty if the format is unknown or the file is damaged."""
    for name, accepts, walk in WALKERS:
        if accepts(data):
            try:
                return _disjoint(walk(data), len(data))
            except (ValueError, IndexError, struct.error, RecursionError) as error:
                log.debug("not readable as %s: %s", name, error)
    return []


def _disjoint(ranges: list[TensorRange], size: int) -> list[TensorRange]:
    kept: list[TensorRange] = []
    end = 0
    for item in sorted(ranges, key=lambda r: (r.offset, -r.size)):
        if item.size and item.offset >= end and item.offset + item.size <= size:
            kept.append(item)
            end = item.offset + item.size
    return kept


__all__ = ["TensorRange", "find_tensors"]
