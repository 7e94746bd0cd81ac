"""Performs a quantization spec on a float hub: writes the quantized hub exactly as compiler/hub.py says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from compiler.quantization.spec import ConstantQuant, Conversion, NodePrecision, QParams, QuantizationSpec, Role
from compiler.quantization.structure import constant_of, name_of, value_name
from runtimes.session import Array

PRECISION_KEY = "edgewright.precision"  # node metadata: a NodePrecision
SPEC_KEY = "edgewright.quantization_spec_sha256"  # model metadata


def perform(model: ir.Model, spec: QuantizationSpec) -> ir.Model:
    """Write the quantized hub; ``model`` is not modified.

    Args:
        model: the float hub that the spec was planned for.

    Raises:
        ValueError: the spec names nodes or values that the model does not have.
    """
    _check(model, spec)
    result = model.clone()
    for node in result.graph:
        node.metadata_props[PRECISION_KEY] = str(spec.nodes[name_of(node)].precision)
    writer = _Writer(result)
    nodes = {name_of(node): node for node in result.graph}
    for constant in spec.constants:
        writer.constant(nodes[constant.node], constant)
    values = {value_name(v): v for v in result.graph.inputs}
    values.update((value_name(o), o) for node in nodes.values() for o in node.outputs if o.name)
    for name, params in spec.activations.items():
        writer.activation(values[name], params)
    for conversion in spec.conversions:
        writer.conversion(nodes[conversion.node], conversion)
    writer.drop_unused_initializers()
    result.metadata_props[SPEC_KEY] = spec.sha256
    return result


def _check(model: ir.Model, spec: QuantizationSpec) -> None:
    names = {name_of(node) for node in model.graph}
    values = {value_name(v) for v in model.graph.inputs}
    values |= {value_name(o) for node in model.graph for o in node.outputs if o.name}
    strangers = sorted((set(spec.nodes) ^ names) | (set(spec.activations) - values))
    if strangers:
        raise ValueError(f"the spec was planned for another model; it differs at {strangers[:5]}")


class _Writer:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._taken = {value_name(v) for v in model.graph.inputs} | set(model.graph.initializers)
        self._taken |= {value_name(o) for node in model.graph for o in node.outputs if o.name}
        self._taken |= {name_of(node) for node in model.graph}
        self._constants: dict[tuple[str, Role, QParams], ir.Value] = {}
        self._pairs: dict[
            str, tuple[ir.Node, ir.Value]
        ] = {}  # by value: its QuantizeLinear, and what the pair restores
        self._conversions: dict[tuple[str, QParams, str], ir.Value] = {}

    def activation(self, value: ir.Value, params: QParams) -> None:
        """Put QuantizeLinear -> DequantizeLinear behind ``value``.

        The DequantizeLinear's output carries the original name (so that both hubs can be tapped at the same names),
        except behind graph inputs, which keep their own.
        """
        name, producer = value_name(value), value.producer()
        restored = ir.Value(type=value.type, shape=value.shape)
        value.replace_all_uses_with(restored, replace_graph_outputs=True)
        if producer is None:
            restored.name = self._unique(f"{name}/dequantized")
        else:
            value.name = self._unique(f"{name}/float")
            restored.name = name
        self._pairs[name] = self._pair(name, value, restored, params, producer)

    def conversion(self, node: ir.Node, conversion: Conversion) -> None:
        """Another pair between a value's own and the node: behind it where the node reads, before it where it writes."""
        quantize, restored = self._pairs[conversion.value]
        source = quantize.inputs[0]
        assert source is not None
        writes = source.producer() is node
        key = (conversion.value, conversion.params, name_of(node) if writes else "")
        if key not in self._conversions:
            before = source if writes else restored
            converted = ir.Value(type=before.type, shape=before.shape)
            converted.name = self._unique(f"{conversion.value}/{conversion.params.dtype}")
            self._pair(converted.name, before, converted, conversion.params, before.producer())
            self._conversions[key] = converted
        if writes:
            quantize.replace_input_with(0, self._conversions[key])
            return
        for index, value in enumerate(node.inputs):
            if value is restored:
                node.replace_input_with(index, self._conversions[key])

    def _pair(
        self, name: str, value: ir.Value, restored: ir.Value, params: QParams, behind: ir.Node | None
    ) -> tuple[ir.Node, ir.Value]:
        """QuantizeLinear and DequantizeLinear from ``value`` to ``restored``, after ``behind`` or first of all."""
        scale, zero_point = self._parameters(name, params)
        assert zero_point.dtype is not None
        codes = ir.Value(
            name=self._unique(f"{name}/quantized"), type=ir.TensorType(zero_point.dtype), shape=value.shape
        )
        pair = [
            ir.node("QuantizeLinear", [value, scale, zero_point], outputs=[codes], name=self._unique(f"{name}/Q")),
            ir.node(
                "DequantizeLinear", [codes, scale, zero_point], outputs=[restored], name=self._unique(f"{name}/DQ")
            ),
        ]
        for node in pair:
            node.metadata_props[PRECISION_KEY] = str(NodePrecision.INT8)
        if behind is None:
            self._graph.insert_before(self._graph[0], pair)
        else:
            self._graph.insert_after(behind, pair)
        return pair[0], restored

    def constant(self, node: ir.Node, constant: ConstantQuant) -> None:
        """Replace a float constant of ``node`` by an integer initializer behind a DequantizeLinear."""
        value = node.inputs[constant.index]
        array = constant_of(value)
        assert value is not None and array is not None
        if constant.role is Role.BIAS:
            array = _bias_vector(node, array)
        key = (value_name(value), constant.role, constant.params)
        if key not in self._constants:
            self._constants[key] = self._dequantized(node, value_name(value), array, constant.params)
        node.replace_input_with(constant.index, self._constants[key])

    def _dequantized(self, before: ir.Node, name: str, array: Array, params: QParams) -> ir.Value:
        codes = self._initializer(f"{name}/quantized", params.quantize(array))
        scale, zero_point = self._parameters(name, params)
        output = ir.Value(
            name=self._unique(f"{name}/dequantized"),
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(array.shape),
        )
        attributes = {} if params.axis is None else {"axis": params.axis}
        if params.block_size:
            attributes["block_size"] = params.block_size
        node = ir.node(
            "DequantizeLinear",
            [codes, scale, zero_point],
            attributes,
            outputs=[output],
            name=self._unique(f"{name}/DQ"),
            metadata_props={PRECISION_KEY: str(NodePrecision.INT8)},
        )
        self._graph.insert_before(before, node)
        return output

    def _parameters(self, name: str, params: QParams) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point: scalars per tensor, [channels] per channel."""
        shape = () if params.axis is None else params.scale.shape
        zero_point = np.full(shape, params.zero_point).astype(params.numpy_dtype)
        return (
            self._initializer(f"{name}/scale", params.scale.reshape(shape)),
            self._initializer(f"{name}/zero_point", zero_point),
        )

    def _initializer(self, name: str, array: Array) -> ir.Value:
        unique = self._unique(name)
        element = ir.DataType.INT4 if array.dtype == ml_dtypes.int4 else None
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=element, name=unique)
        value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _unique(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._taken:
            candidate, number = f"{name}_{number}", number + 1
        self._taken.add(candidate)
        return candidate

    def drop_unused_initializers(self) -> None:
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self._graph.initializers[name]


def _bias_vector(node: ir.Node, bias: Array) -> Array:
    """[channels]; Gemm's C may also be a scalar or [1, channels]."""
    if node.op_type != "Gemm":
        return bias
    shape = node.outputs[0].shape
    channels = shape[-1] if shape is not None else bias.size
    assert isinstance(channels, int)
    return np.broadcast_to(bias.reshape(-1), (channels,))
