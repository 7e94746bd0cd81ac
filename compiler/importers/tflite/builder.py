"""Builder: ONNX nodes for one TFLite graph.

Convolutions and poolings are channels-last in TFLite and channels-first in ONNX. The builder keeps every tensor in the axis
order in which it came into being and transposes only for a reader that asks for another, so that a chain of convolutions and
element-wise operators stays channels-first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.hub import HUB_IR_VERSION, HUB_OPSET
from compiler.importers.tflite.reader import Graph, Operator, Quantization, TensorInfo, enum_names
from runtimes.session import Array

Perm = tuple[int, ...]
CHANNELS_FIRST: Perm = (0, 3, 1, 2)
INTEGERS = ("int8", "uint8", "int16")  # what quantized activations are stored in


class Unsupported(Exception):
    """An operator that has no ONNX form here; ``reason`` reads after its name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor as an ONNX value whose axis i is the tensor's axis ``perm[i]``."""

    name: str
    perm: Perm


def identity(rank: int) -> Perm:
    return tuple(range(rank))


class Builder:
    """Collects nodes and initializers while the operators are walked in the file's order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[bytes, str] = {}
        self._held: dict[int, list[Held]] = {}
        self._count = 0

    def tensor(self, index: int) -> TensorInfo:
        return self.graph.tensors[index]

    def shape(self, index: int) -> tuple[int, ...]:
        return self.graph.tensors[index].shape

    # --- writing -----------------------------------------------------------------------------------------------

    def emit(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.emit_many(op_type, inputs, 1, **attributes)[0]

    def emit_many(self, op_type: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        names = [self._fresh(op_type.lower()) for _ in range(outputs)]
        self._nodes.append(helper.make_node(op_type, list(inputs), names, self._fresh(op_type), **attributes))
        return names

    def constant(self, array: Array) -> str:
        """An initializer; equal ones are stored once."""
        array = np.ascontiguousarray(array) if array.ndim else array
        key = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        if key not in self._constants:
            name = self._fresh("constant")
            self._initializers[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    # --- reading -----------------------------------------------------------------------------------------------

    def values(self, index: int | None) -> Array | None:
        """A constant tensor's real values (float16 and quantized ones as float32), None for a computed tensor."""
        if index is None or self.tensor(index).data is None:
            return None
        info = self.tensor(index)
        data = info.data
        assert data is not None
        if info.quantization is not None and np.issubdtype(data.dtype, np.integer):
            scale, points = (aligned(v, info.quantization, data.ndim) for v in _parameters(info.quantization))
            return np.asarray((data.astype(np.int64) - points).astype(np.float32) * scale)
        return data.astype(np.float32) if data.dtype == np.float16 else data

    def required(self, operator: Operator, position: int, what: str) -> Array:
        """The constant at ``position``. Raises Unsupported."""
        found = self.values(operator.input(position))
        if found is None:
            raise Unsupported(f"its {what} is computed while the model runs")
        return found

    def is_computed(self, index: int) -> bool:
        """Whether an operator before this one, or an input, gives the tensor."""
        return index in self._held

    def perm(self, index: int) -> Perm:
        """The axis order in which a tensor exists; constants exist in their own."""
        held = self._held.get(index)
        return held[0].perm if held else identity(len(self.shape(index)))

    def read(self, index: int, perm: Perm | None = None) -> str:
        """The ONNX value of a tensor with its axes in the order ``perm`` (default: the tensor's own order)."""
        wanted = identity(len(self.shape(index))) if perm is None else perm
        if index not in self._held:
            self._held[index] = [self._constant_tensor(index)]
        for held in self._held[index]:
            if held.perm == wanted:
                return held.name
        first = self._held[index][0]
        name = self.emit("Transpose", [first.name], perm=[first.perm.index(axis) for axis in wanted])
        self._held[index].append(Held(name, wanted))
        return name

    def _constant_tensor(self, index: int) -> Held:
        info, values = self.tensor(index), self.values(index)
        if values is not None and info.quantization is not None:
            return Held(self.weight(index), identity(values.ndim))
        if values is None:
            kind = "a resource of a stateful model" if info.is_variable else f"of type {info.dtype}"
            raise Unsupported(f"its input {info.name!r} is {kind} and has no value")
        return Held(self.constant(values), identity(values.ndim))

    def weight(self, index: int, axes: Perm | None = None) -> str:
        """A weight or bias: a float initializer, or integer codes behind a DequantizeLinear, its axes permuted by ``axes``."""
        info = self.tensor(index)
        perm = identity(len(info.shape)) if axes is None else axes
        if info.data is None:
            return self.read(index, perm)
        if info.quantization is None or info.data.dtype.kind not in "iu":
            values = self.values(index)
            assert values is not None
            return self.constant(values.transpose(perm))
        codes, quantization = _signed(info.data, info.quantization)
        return self._dequantized(self.constant(codes.transpose(perm)), codes.dtype, quantization, perm)

    def _dequantized(self, codes: str, dtype: np.dtype[Any], quantization: Quantization, perm: Perm) -> str:
        scale, points = _parameters(quantization)
        if len(scale) == 1:
            scale, points = scale.reshape(()), points.reshape(())
            attributes = {}
        else:
            attributes = {"axis": perm.index(quantization.axis)}
        inputs = [codes, self.constant(scale), self.constant(points.astype(dtype))]
        return self.emit("DequantizeLinear", inputs, **attributes)

    # --- results -----------------------------------------------------------------------------------------------

    def bind(self, index: int, name: str, perm: Perm | None = None) -> None:
        """Say that ``name`` is the tensor's value; a quantized tensor gets the pair that its integers mean."""
        info = self.tensor(index)
        if info.quantization is not None and info.dtype in INTEGERS:
            name = self._pair(name, info)
        self._held[index] = [Held(name, identity(len(info.shape)) if perm is None else perm)]

    def _pair(self, name: str, info: TensorInfo) -> str:
        assert info.quantization is not None
        if len(info.quantization.scale) != 1:
            raise Unsupported(f"its tensor {info.name!r} is quantized per channel, as no ONNX activation is")
        shift = 128 if info.dtype == "uint8" else 0
        dtype = "int8" if info.dtype == "uint8" else info.dtype
        scale = self.constant(info.quantization.scale.reshape(()))
        point = self.constant((info.quantization.zero_point - shift).astype(dtype).reshape(()))
        codes = self.emit("QuantizeLinear", [name, scale, point])
        return self.emit("DequantizeLinear", [codes, scale, point])

    def stand_in(self, operator: Operator) -> None:
        """Give a refused operator's outputs names, so that the rest is looked at too and all refusals are listed at once."""
        for index in operator.outputs:
            self._held[index] = [Held(f"refused_{index}", identity(len(self.shape(index))))]

    def finish(self, operator: Operator, name: str, perm: Perm | None = None) -> None:
        """Bind the operator's first output to ``name`` behind its fused activation."""
        number = operator.option("fusedActivationFunction")
        self.bind(operator.outputs[0], self.activated(enum_names("ActivationFunctionType")[number], name), perm)

    def activated(self, activation: str, name: str) -> str:
        """RELU and its like behind ``name``. Source: ActivationFunctionType in schema.fbs."""
        bounds = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}
        if activation == "NONE":
            return name
        if activation in bounds:
            low, high = (self.constant(np.array(bound, np.float32)) for bound in bounds[activation])
            return self.emit("Clip", [name, low, high])
        if activation in ("RELU", "TANH"):
            return self.emit({"RELU": "Relu", "TANH": "Tanh"}[activation], [name])
        raise Unsupported(f"its fused activation {activation} has no ONNX form here")

    # --- the whole -----------------------------------------------------------------------------------------------

    def feed(self, name: str, index: int) -> onnx.ValueInfoProto:
        """Declare a graph input. A quantized one is float32 outside, and quantized at once."""
        info = self.tensor(index)
        quantized = info.quantization is not None and info.dtype in INTEGERS
        self.bind(index, name)
        return _value_info(name, "float32" if quantized else info.dtype, info.shape)

    def fetch(self, name: str, index: int) -> onnx.ValueInfoProto:
        """Declare a graph output in the tensor's own axis order."""
        info = self.tensor(index)
        self._nodes.append(helper.make_node("Identity", [self.read(index)], [name], self._fresh("output")))
        quantized = info.quantization is not None and info.dtype in INTEGERS
        return _value_info(name, "float32" if quantized or info.dtype == "float16" else info.dtype, info.shape)

    def model(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, "tflite", inputs, outputs, list(self._initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", HUB_OPSET)], ir_version=HUB_IR_VERSION)


def _value_info(name: str, dtype: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    try:
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except (TypeError, ValueError):
        raise Unsupported(f"the tensor {name!r} is of type {dtype}") from None
    return helper.make_tensor_value_info(name, element, shape)


def _parameters(quantization: Quantization) -> tuple[Array, Array]:
    return quantization.scale, quantization.zero_point


def aligned(values: Array, quantization: Quantization, rank: int) -> Array:
    """[channels] shaped to broadcast along the quantized axis of a tensor of ``rank``."""
    if len(values) == 1:
        return values.reshape(())
    return values.reshape([-1 if axis == quantization.axis else 1 for axis in range(rank)])


def _signed(codes: Array, quantization: Quantization) -> tuple[Array, Quantization]:
    """uint8 codes as int8: the same numbers moved by 128."""
    if codes.dtype != np.uint8:
        return codes, quantization
    moved = (codes.astype(np.int16) - 128).astype(np.int8)
    return moved, Quantization(quantization.scale, quantization.zero_point - 128, quantization.axis)
