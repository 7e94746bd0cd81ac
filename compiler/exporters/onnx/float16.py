"""float16 weights and compute, float32 inputs and outputs with Casts at the edge."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.passes.edit import add_initializer

_MAX = float(np.finfo(np.float16).max)  # 65,504
_TINY = 2.0**-25  # half of the smallest subnormal: anything closer to zero becomes zero

# Operators that stay float32: without float16 in their ONNX definition or in onnxruntime's kernels, or whose sums
# leave the range. Source: ONNX operator schemas (type constraint T).
KEEP_FLOAT32 = {
    "Resize": "its scales and regions of interest are float32 by definition",
    "RoiAlign": "coordinates need float32",
    "NonMaxSuppression": "boxes and scores are float32 by definition",
    "ReduceSumSquare": "the sum of squares leaves the range of float16",
    "ReduceL2": "the sum of squares leaves the range of float16",
    "CumSum": "the running sum leaves the precision of float16",
    "Range": "positions above 2,048 are not exact in float16",
}


def to_float16(model: ir.Model) -> tuple[str, ...]:
    """Convert in place; returns a note for every node kept in float32 and one for the Casts.

    Values change type as a whole: a float16 node reads float16 values, and a Cast stands where a float32 node and a
    float16 node meet. A node with a constant outside float16's range, or one that would become zero altogether, or
    with a subgraph, is kept in float32.
    """
    graph = model.graph
    kept = {node: reason for node in graph if (reason := _keep_reason(node)) is not None}
    converter = _Converter(graph, set(kept))
    for node in list(graph):
        converter.convert(node)
    converter.restore_outputs()
    converter.drop_unused()
    notes = tuple(f"{node.op_type} {node.name!r} stays float32: {reason}" for node, reason in kept.items())
    return (*notes, f"{converter.casts} casts between float32 and float16")


def _keep_reason(node: ir.Node) -> str | None:
    floats = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype is ir.DataType.FLOAT]
    if not floats:
        return None
    if node.op_type in KEEP_FLOAT32:
        return KEEP_FLOAT32[node.op_type]
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return "it holds a subgraph"
    # Clip's bounds are limits, not data: infinity in float16 bounds nothing, exactly like 3.4e38 in float32.
    for value in floats:
        if value.const_value is None or (node.op_type == "Clip" and value is not node.inputs[0]):
            continue
        array = np.abs(value.const_value.numpy())
        if array.size and float(array.max()) > _MAX:
            return f"{value.name!r} holds {float(array.max()):.4g}, beyond float16's 65504"
        nonzero = array[array > 0]
        if nonzero.size and float(nonzero.max()) <= _TINY:
            return f"{value.name!r} holds {float(nonzero.max()):.4g}, which is zero in float16"
    return None


class _Converter:
    """State of one conversion: the twin of each value in the other type, made when first asked for."""

    def __init__(self, graph: ir.Graph, kept: set[ir.Node]) -> None:
        self._graph, self._kept, self.casts = graph, kept, 0
        self._twins: dict[ir.Value, ir.Value] = {}

    def convert(self, node: ir.Node) -> None:
        half = node not in self._kept
        wanted = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                node.replace_input_with(index, self._as(value, wanted, node))
        if half:
            self._convert_attributes(node)
            for value in node.outputs:
                if value.dtype is ir.DataType.FLOAT:
                    value.dtype = ir.DataType.FLOAT16

    def _as(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node | None) -> ir.Value:
        if value.dtype is wanted:
            return value
        if value not in self._twins:
            self._twins[value] = self._constant(value) if value.is_initializer() else self._cast(value, wanted, reader)
        return self._twins[value]

    def _constant(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        with np.errstate(over="ignore"):  # the bounds of Clip may become infinite, and mean the same
            array = value.const_value.numpy().astype(np.float16)
        return add_initializer(self._graph, f"{value.name}_float16", array)

    def _cast(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node | None) -> ir.Value:
        suffix = "float16" if wanted is ir.DataType.FLOAT16 else "float32"
        cast = ir.node("Cast", [value], {"to": int(wanted)}, name=f"{value.name}_to_{suffix}")
        result = cast.outputs[0]
        result.name, result.type, result.shape = f"{value.name}_{suffix}", ir.TensorType(wanted), value.shape
        if reader is not None:
            self._graph.insert_before(reader, cast)
        else:
            self._graph.append(cast)
        self.casts += 1
        return result

    def _convert_attributes(self, node: ir.Node) -> None:
        """Attributes that name or hold a type: Cast to float32 becomes Cast to float16, and so on."""
        for name in ("to", "dtype", "output_dtype"):
            attribute = node.attributes.get(name)
            if attribute is not None and attribute.as_int() == int(ir.DataType.FLOAT):
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT16))
        tensor = node.attributes.get("value")
        if tensor is not None and tensor.type is ir.AttributeType.TENSOR and tensor.value.dtype is ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(tensor.value.numpy().astype(np.float16)))

    def restore_outputs(self) -> None:
        """Graph outputs are float32 under their own names: the float16 value behind them takes another name."""
        for index, value in enumerate(self._graph.outputs):
            if value.dtype is not ir.DataType.FLOAT16:
                continue
            name = value.name
            assert name is not None
            value.name = f"{name}_float16"
            result = self._cast(value, ir.DataType.FLOAT, None)
            result.name = name
            self._graph.outputs[index] = result

    def drop_unused(self) -> None:
        for value in list(self._graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                assert value.name is not None
                self._graph.initializers.pop(value.name)
