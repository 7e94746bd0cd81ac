"""Which nodes of a float16 artifact compute in float32: for constants that float16 lacks, for relying on them, for what data says.

``x + 1e-10`` keeps a logarithm or a division from its pole. Computed in float32 and rounded to float16 before the
logarithm, the sum is 0 again: so what is read with a pole at zero stays in float32 together with the sum, and so does
the product with its reciprocal, which may be as large as 1e10. What ``x`` is made of matters down to the guard as well:
squares and sums that lead to it (the power of a spectrum, the square of a norm) are computed in float32, back to the
operator that gave their operands. compiler/quantization/half_ranges.py finds more where there is calibration data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from compiler.hub import KEEP_FLOAT32
from runtimes.session import Array

if TYPE_CHECKING:
    import onnx_ir as ir

FLOAT16_MAX: Final = 65504.0  # IEEE 754 binary16: (2 - 2**-10) * 2**15
LONE_ERROR: Final = 2.0**-8  # eight times float16's own rounding; 1e-5, the usual epsilon, is off by 0.14 % and passes
# Operators whose parameters are scales: see lowering/quantization.py.
FLOAT32_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# What leaves a number near zero near zero.
PASSING = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Slice", "Gather"}
) | {"Sqrt", "Max", "Clip", "Dropout"}
# What a square or a norm is made of: between these, numbers leave float16's range and return to it.
POWERS = frozenset({"Mul", "Add", "Abs", "Pow", "ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2"})
INVERTING = frozenset({"Reciprocal", "Pow"})


class HalfPrecision:
    """Decides node by node, in the graph's order, and remembers what the decisions imply for the nodes behind.

    Args:
        constant: the array of a value that is constant where the artifact is written, else None.
    """

    def __init__(self, constant: Callable[[ir.Value], Array | None], graph: ir.Graph) -> None:
        self.kept: list[str] = []
        self._constant = constant
        self._near_zero: set[ir.Value] = set()  # kept off zero by a number that float16 lacks
        self._huge: set[ir.Value] = set()  # reciprocals of such values
        self._feeding = _feeding_guards(graph)

    def compute_type(self, node: ir.Node) -> str:
        """ "fp32" or "fp16"."""
        if node.op_type in FLOAT32_OPS:
            return "fp32"
        asked = KEEP_FLOAT32 in node.metadata_props
        if self._has_foreign_constant(node) or self._relies_on_float32(node) or node in self._feeding or asked:
            self.kept.append(node.name or node.op_type)
            return "fp32"
        return "fp16"

    def _has_foreign_constant(self, node: ir.Node) -> bool:
        constants = [self._constant(v) for v in node.inputs if v is not None]
        floats = [c for c in constants if c is not None and c.dtype.kind == "f"]
        if any(_vanishes(c) for c in floats):
            self._near_zero.update(node.outputs)
            return True
        attributes = [np.array(_attribute(node, name), np.float32) for name in ("epsilon", "alpha", "beta")]
        # Bounds beyond float16's range bound nothing there.
        return node.op_type != "Clip" and not all(fits_float16(c) for c in (*floats, *attributes))

    def _relies_on_float32(self, node: ir.Node) -> bool:
        near_zero = [value in self._near_zero for value in node.inputs]
        huge = any(value in self._huge for value in node.inputs)
        if node.op_type in PASSING and (any(near_zero) or huge):
            (self._huge if huge else self._near_zero).update(node.outputs)
            return True
        if node.op_type in INVERTING and near_zero[0]:
            self._huge.update(node.outputs)
            return True
        if node.op_type == "Div" and near_zero[1]:
            if node.inputs[0] is not None and self._constant(node.inputs[0]) is not None:
                self._huge.update(node.outputs)
            return True
        return (node.op_type == "Log" and near_zero[0]) or (node.op_type == "Mul" and huge)


def _feeding_guards(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that make up what a vanishing constant is added to or compared with."""
    guarded = (node for node in graph if any(_is_vanishing(value) for value in node.inputs))
    found: set[ir.Node] = set()
    todo = [producer for node in guarded for producer in _producers(node)]
    while todo:
        node = todo.pop()
        if node not in found and node.op_type in POWERS | PASSING:
            found.add(node)
            todo.extend(_producers(node))
    return found


def _producers(node: ir.Node) -> list[ir.Node]:
    return [p for value in node.inputs if value is not None and (p := value.producer()) is not None]


def _is_vanishing(value: ir.Value | None) -> bool:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return False
    constant = np.asarray(value.const_value.numpy())
    return constant.dtype.kind == "f" and _vanishes(constant)


def _vanishes(constant: Array) -> bool:
    """Whether a lone number is one that float16 loses near zero."""
    return constant.size == 1 and 0 < abs(float(constant.reshape(-1)[0])) < 1 and not fits_float16(constant)


def fits_float16(array: Array) -> bool:
    """Whether float16 can stand for a float constant.

    Not when a finite value would become infinite, and not when a lone number (an epsilon, a factor) is so small that
    float16's subnormals miss it by more than LONE_ERROR, or lose it. Small entries of larger tensors may vanish: beside
    the others that is float16's ordinary rounding.
    """
    finite = array[np.isfinite(array)]
    if finite.size and float(np.abs(finite).max()) > FLOAT16_MAX:
        return False
    if array.size != 1 or not finite.size:
        return True
    value = float(finite[0])
    return abs(float(np.float16(value)) - value) <= LONE_ERROR * abs(value)


def _attribute(node: ir.Node, name: str) -> float:
    """A float attribute, 0 where it is absent or of another type."""
    import onnx_ir as ir

    attribute = node.attributes.get(name)
    return attribute.as_float() if attribute is not None and attribute.type == ir.AttributeType.FLOAT else 0.0
