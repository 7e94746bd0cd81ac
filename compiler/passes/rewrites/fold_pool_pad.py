"""A Pad of minus infinity before a MaxPool becomes the pool's own padding.

Without that the padded value holds infinities, whose range no calibration can cover: int8 would be refused for the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from compiler.passes.base import Rewrite
from compiler.passes.edit import constant, input_of, integer, ints, only_used_by, out, producer, rank, replace, text

LOWEST = (
    -1e30
)  # exporters write minus infinity, or float32's or float16's lowest number with a wide margin to any activation


@dataclass(frozen=True, slots=True)
class Match:
    pad: ir.Node
    pool: ir.Node


class FoldPoolPad(Rewrite[Match]):
    """Source: ONNX operators Pad-21 and MaxPool-12 (its padding never wins the maximum)."""

    name = "fold_pool_pad"
    op_types = frozenset({"MaxPool"})

    def pattern(self, node: ir.Node) -> Match | None:
        pad = producer(node.inputs[0], "Pad")
        return Match(pad, node) if pad is not None else None

    def check(self, match: Match) -> str | None:
        fill, pads = constant(input_of(match.pad, 2)), constant(input_of(match.pad, 1))
        if text(match.pad, "mode", "constant") != "constant" or input_of(match.pad, 3) is not None:
            return "it pads in another mode, or along chosen axes"
        if pads is None or fill is None or not (fill <= LOWEST).all():
            return "it does not pad with minus infinity"
        size = rank(match.pool.inputs[0])
        if size is None or (pads < 0).any() or pads[:2].any() or pads[size : size + 2].any():
            return "it pads batch or channels, or cuts off"
        if text(match.pool, "auto_pad", "NOTSET") != "NOTSET" or integer(match.pool, "ceil_mode", 0):
            return "the pool computes its own padding from its input's size"
        if not only_used_by(out(match.pad), match.pool):
            return "the padded value is read elsewhere"
        if any(output.name for output in match.pool.outputs[1:]):
            return "the pool's indices count the padding"
        kernel = ints(match.pool, "kernel_shape") or ()
        if any(both >= window for both, window in zip(self._merged(match), kernel * 2, strict=True)):
            return "the padding would be as wide as the window, which ONNX does not allow"
        return None

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        attributes = {name: attribute.value for name, attribute in match.pool.attributes.items()}
        fused = ir.node("MaxPool", [match.pad.inputs[0]], attributes | {"pads": self._merged(match)})
        replace(graph, [match.pad, match.pool], [fused], at=match.pool)

    @staticmethod
    def _merged(match: Match) -> tuple[int, ...]:
        added = constant(input_of(match.pad, 1))
        assert added is not None
        half = len(added) // 2
        outer = [int(p) for p in (*added[2:half], *added[half + 2 :])]
        own = ints(match.pool, "pads") or (0,) * len(outer)
        return tuple(a + b for a, b in zip(own, outer, strict=True))
