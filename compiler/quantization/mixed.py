"""Concatenations of unlike ranges at the end of a model: detector heads that put scores of one beside boxes of hundreds.

One scale for both leaves the scores a handful of codes. Where only data movement stands between the concatenation and the model's
outputs, it costs nothing to leave it in float: each part keeps its own scale until it is dequantized, which happens there anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx_ir as ir

from compiler.calibration.observers import Range
from compiler.quantization.structure import Structure, constant_of, data_inputs, ends_the_model, name_of, value_name

UNLIKE: Final = 8.0  # times as wide: the narrowest part keeps 32 of 256 codes


def unlike_concats(model: ir.Model, structure: Structure, ranges: Mapping[str, Range]) -> dict[str, str]:
    """Names of the Concat nodes to leave in float, with the reason."""
    found = {}
    for node in model.graph:
        if node.op_type != "Concat" or not structure.is_int8(node) or not ends_the_model(node, structure):
            continue
        widths = {
            value_name(v): ranges[value_name(v)].high - ranges[value_name(v)].low
            for _, v in data_inputs(node)
            if constant_of(v) is None and v.name in ranges
        }
        alive = {name: width for name, width in widths.items() if width > 0}
        if len(alive) > 1 and max(alive.values()) > UNLIKE * min(alive.values()):
            narrow, wide = min(alive, key=lambda n: alive[n]), max(alive, key=lambda n: alive[n])
            times = alive[wide] / alive[narrow]
            found[name_of(node)] = (
                f"{wide!r} ranges {times:.0f} times as wide as {narrow!r}, and one scale would serve both"
            )
    return found
