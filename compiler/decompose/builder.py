"""Builder: one node on the way in, simpler nodes on the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Operand:
    """A value of the graph: name, static shape, dtype, and its content where that is constant."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    constant: Array | None = None


@dataclass
class Builder:
    """Collects the nodes that replace ``node``.

    ``op`` appends a node and returns its first output's name; arguments are names, or arrays that become initializers. The last
    step names its result with ``output``: what it names replaces the node's own outputs.
    """

    node: onnx.NodeProto
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand | None, ...]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    stem: str = ""  # what names begin with, where it is not the node's: in the body of a loop

    @property
    def x(self) -> Operand:
        """The first input."""
        assert self.inputs[0] is not None
        return self.inputs[0]

    @property
    def y(self) -> Operand:
        """The first output."""
        assert self.outputs[0] is not None
        return self.outputs[0]

    def operand(self, index: int) -> Operand | None:
        """Input ``index``, or None where the optional input is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def wanted(self, index: int) -> bool:
        """Whether output ``index`` exists and is named."""
        return index < len(self.outputs) and self.outputs[index] is not None

    def attribute(self, name: str, default: Any) -> Any:
        """The attribute's Python value (bytes as text), or ``default``."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def constant(self, array: Any, dtype: Any = None) -> str:
        """The name of an initializer with this content."""
        name = f"{self.stem or self.node.name}/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def like(self, number: float) -> str:
        """A scalar of the first input's type."""
        return self.constant(number, self.x.dtype)

    def op(self, op_type: str, *inputs: str | Array, outputs: int = 1, **attributes: Any) -> str:
        """Append a node; the name of its first output. More outputs are called by ``nth``."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        stem = f"{self.stem or self.node.name}/{op_type}_{len(self.nodes)}"
        results = [stem, *(f"{stem}.{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, names, results, name=stem, **attributes))
        return stem

    def nth(self, first: str, index: int) -> str:
        """Output ``index`` of the node whose first output is ``first``."""
        return f"{first}.{index}" if index else first

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        return self.op("Reshape", name, np.asarray(shape, np.int64))

    def transpose(self, name: str, order: Sequence[int]) -> str:
        return self.op("Transpose", name, perm=list(order))

    def take(self, name: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        """Slice along one axis."""
        bounds = [np.asarray([number], np.int64) for number in (start, stop, axis, step)]
        return self.op("Slice", name, *bounds)

    def output(self, name: str, index: int = 0) -> None:
        """``name`` is output ``index`` of the decomposed node; outputs that nobody reads are passed over."""
        operand = self.outputs[index] if index < len(self.outputs) else None
        if operand is not None:
            self.nodes.append(
                helper.make_node("Identity", [name], [operand.name], name=f"{self.node.name}/out_{index}")
            )
