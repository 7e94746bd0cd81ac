"""float16 weights and compute, with float32 inputs and outputs.

Each node's operator schema says which of its inputs and outputs may be float16 (type constraints of the ONNX specification, read
from onnx.defs); nodes that may not, and nodes with constants beyond float16's range, stay float32 between two Casts.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from compiler.exporters.half_precision import FLOAT16_MAX, HalfPrecision
from compiler.hub import HUB_OPSET, KEEP_FLOAT32
from compiler.passes.serialize import from_bytes, to_bytes
from runtimes.session import Array

# Their output type is an attribute, or they exist to change types.
TYPED = frozenset(
    {
        "Cast",
        "CastLike",
        "ConstantOfShape",
        "EyeLike",
        "RandomNormal",
        "RandomUniform",
        "QuantizeLinear",
        "DequantizeLinear",
    }
)
RANGE = {
    "ReduceSumSquare": "the sum of squares leaves float16's range",
    "ReduceL2": "the sum of squares leaves float16's range",
    "CumSum": "the running sum leaves float16's precision",
}
HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def to_float16(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """Return a converted copy and notes about what stayed float32 and why. ``model`` is not modified."""
    converter = _Converter(from_bytes(to_bytes(model)))
    converter.run()
    return converter.model, tuple(converter.notes)


class _Converter:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.notes: list[str] = []
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._names = {v.name for n in model.graph for v in n.outputs} | set(model.graph.initializers)
        self._names |= {v.name for v in model.graph.inputs}

    def run(self) -> None:
        graph = self.model.graph
        guarded = HalfPrecision(_constant_of, graph)
        relying = {node for node in graph if guarded.compute_type(node) == "fp32"}
        outputs = {value: index for index, value in enumerate(graph.outputs)}
        for node in list(graph):
            reason = self._reason_to_keep(node)
            if reason is None and node in relying and any(v.dtype == SINGLE for v in node.outputs):
                reason = "it leads to, or relies on, a number near zero that float16 lacks"
            if reason:
                self.notes.append(f"{node.op_type} {node.name!r} stays float32: {reason}")
            self._convert(node, single=reason is not None)
        for value, index in outputs.items():
            if value.dtype == HALF:
                self._restore_output(value, index)
        for name in [n for n, v in graph.initializers.items() if not v.uses() and v not in outputs]:
            del graph.initializers[name]

    def _reason_to_keep(self, node: ir.Node) -> str | None:
        """None for a node that can compute in float16, or that has nothing to convert."""
        floats = [v for v in [*node.inputs, *node.outputs] if v is not None and v.dtype == SINGLE]
        if not floats:
            return None
        if KEEP_FLOAT32 in node.metadata_props:
            return str(node.metadata_props[KEEP_FLOAT32])
        if node.op_type in TYPED:
            return "its type is fixed by its own definition"
        if node.op_type in RANGE:
            return RANGE[node.op_type]
        if any(isinstance(a, ir.Attr) and a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            return "it holds subgraphs"
        if any(reader.graph is not node.graph for output in node.outputs for reader, _ in output.uses()):
            return "a subgraph reads it"
        # Clip's bounds are limits, not data: infinity in float16 bounds nothing, exactly as 3.4e38 does in float32.
        for value in node.inputs[:1] if node.op_type == "Clip" else node.inputs:
            if value is not None and value.dtype == SINGLE and value.const_value is not None:
                largest = float(np.abs(value.const_value.numpy()).max(initial=0.0))
                if largest > FLOAT16_MAX:
                    return f"constant {value.name!r} reaches {largest:.4g}, float16 ends at {FLOAT16_MAX:g}"
        if not _half_slots(node):
            return "the operator is not defined for float16"
        return None

    def _convert(self, node: ir.Node, *, single: bool) -> None:
        slots = frozenset() if single else _half_slots(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (SINGLE, HALF):
                wanted = HALF if ("in", index) in slots else SINGLE
                node.replace_input_with(index, self._as(value, wanted, node))
        for index, output in enumerate(node.outputs):
            if output.dtype == SINGLE and ("out", index) in slots:
                output.type = ir.TensorType(HALF)

    def _as(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """``value`` in ``dtype``: itself, a converted constant, or the output of one shared Cast."""
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self._casts:
            constant = value.const_value
            self._casts[key] = (
                self._constant(value, constant) if constant is not None else self._cast(value, dtype, before)
            )
        return self._casts[key]

    def _constant(self, value: ir.Value, constant: ir.TensorProtocol) -> ir.Value:
        with np.errstate(over="ignore"):  # only Clip's bounds come here from beyond the range
            array = constant.numpy().astype(np.float16)
        lost = int(((array == 0) & (constant.numpy() != 0)).sum())
        if lost:
            self.notes.append(
                f"{lost} of {array.size} elements of {value.name!r} are too small for float16 and became 0"
            )
        name = self._unique(f"{value.name}.float16")
        made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(HALF), const_value=ir.tensor(array, name=name))
        self.model.graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        suffix = "float16" if dtype == HALF else "float32"
        cast = ir.node("Cast", [value], {"to": int(dtype)}, name=self._unique(f"{value.name}.to_{suffix}"))
        output = cast.outputs[0]
        output.name, output.type, output.shape = (
            self._unique(f"{value.name}.{suffix}"),
            ir.TensorType(dtype),
            value.shape,
        )
        self.model.graph.insert_before(before, cast)
        return output

    def _restore_output(self, value: ir.Value, index: int) -> None:
        """Graph outputs stay float32 under their own names."""
        name = value.name
        value.name = self._unique(f"{name}.float16")
        cast = ir.node("Cast", [value], {"to": int(SINGLE)}, name=self._unique(f"{name}.to_float32"))
        output = cast.outputs[0]
        output.name, output.type, output.shape = name, ir.TensorType(SINGLE), value.shape
        self.model.graph.append(cast)
        self.model.graph.outputs[index] = output

    def _unique(self, name: str) -> str:
        found, count = name, 1
        while found in self._names:
            found, count = f"{name}.{count}", count + 1
        self._names.add(found)
        return found


def _constant_of(value: ir.Value) -> Array | None:
    return value.const_value.numpy() if value.const_value is not None and value.is_initializer() else None


def _half_slots(node: ir.Node) -> frozenset[tuple[str, int]]:
    """Which inputs and outputs may be float16 together, by the operator's schema; empty if the main ones may not."""
    schema = onnx.defs.get_schema(node.op_type, HUB_OPSET, node.domain)
    allowed = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
    slots = set()
    for side, formal, actual in (("in", schema.inputs, node.inputs), ("out", schema.outputs, node.outputs)):
        for index in range(len(actual)):
            parameter = formal[min(index, len(formal) - 1)]  # a variadic parameter stands for all the rest
            if parameter.type_str in allowed:
                slots.add((side, index))
    floats = [i for i, v in enumerate(node.outputs) if v.dtype == SINGLE]
    return frozenset(slots) if all(("out", i) in slots for i in floats) else frozenset()
