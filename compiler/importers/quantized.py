"""Models that somebody else quantized: QLinear operators and loose QDQ become the pairs that compiler/hub.py asks for.

What stays as it is: every scale, every zero point, every code. What changes is their form alone: uint8 becomes int8 (both moved by
128), weights that are quantized as the model runs are stored as codes, operators on codes stand between pairs.

Sources: ONNX QLinearConv-10, QLinearMatMul-21, QuantizeLinear-21, DequantizeLinear-21; onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from profiles.schema import Precision
from runtimes.session import Array

CONTRIB: Final = "com.microsoft"
OFFSET: Final = 128
# Operators of CONTRIB that this module knows; the others are refused with the rest of their domain.
_UNARY: Final = {
    "QLinearSigmoid": "Sigmoid",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearReduceMean": "ReduceMean",
    "QLinearSoftmax": "Softmax",
}
_BINARY: Final = {"QLinearAdd": "Add", "QLinearMul": "Mul"}
_PAIR: Final = ("QuantizeLinear", "DequantizeLinear")
# Operators that may work on codes, because they only choose or move them.
_MOVES_CODES: Final = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "MaxPool", "Identity", "Split"}
)
_DROPPED: Final = ("channels_last", "opset")


def source_precision(source: str) -> Precision | None:
    """What a .onnx or .tflite file is quantized to already; None for float models and for files that cannot be read.

    External data is not read. The importer says what is wrong with a damaged file.
    """
    path = Path(source)
    if not path.is_file():
        return None
    if path.suffix == ".onnx":
        try:
            return _onnx_precision(onnx.load_model(path, load_external_data=False))
        except (DecodeError, OSError, ValueError):
            return None
    return _tflite_precision(path) if path.suffix == ".tflite" else None


def _onnx_precision(proto: onnx.ModelProto) -> Precision | None:
    nodes = list(proto.graph.node)
    constants = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    constants |= {
        node.output[0]: a.t.data_type
        for node in nodes
        if node.op_type == "Constant"
        for a in node.attribute
        if a.name == "value"
    }
    if any(node.op_type.startswith("QLinear") or node.op_type == "QGemm" for node in nodes):
        return Precision.INT8
    computed = [n for n in nodes if n.op_type == "QuantizeLinear" and n.input[0] not in constants]
    if computed:
        points = {constants.get(n.input[2]) for n in computed if len(n.input) > 2}
        return Precision.INT16X8 if points & {onnx.TensorProto.INT16, onnx.TensorProto.UINT16} else Precision.INT8
    weights = {constants.get(n.input[0]) for n in nodes if n.op_type == "DequantizeLinear"}
    if not weights:
        return None
    return Precision.INT4_WEIGHTS if onnx.TensorProto.INT4 in weights else Precision.INT8_WEIGHTS


def _tflite_precision(path: Path) -> Precision | None:
    from compiler.errors import CompilerError
    from compiler.importers.tflite.reader import read_graph
    from runtimes.errors import RuntimeFailure

    try:
        graph = read_graph(path)
    except (CompilerError, RuntimeFailure):
        return None
    scaled = [t for t in graph.tensors if t.quantization is not None]
    computed = {t.dtype for t in scaled if t.data is None}
    if "int16" in computed:
        return Precision.INT16X8
    if computed & {"int8", "uint8"}:
        return Precision.INT8
    stored = {t.dtype for t in scaled if t.data is not None}
    if "int4" in stored:
        return Precision.INT4_WEIGHTS
    return Precision.INT8_WEIGHTS if stored & {"int8", "uint8"} else None


def is_known(node: onnx.NodeProto) -> bool:
    """Whether ``to_pairs`` turns this operator of CONTRIB into standard ones."""
    known = node.op_type in {*_UNARY, *_BINARY, *_PAIR, "QLinearConcat", "QLinearWhere", "QGemm"}
    last = any(a.name == "channels_last" and a.i for a in node.attribute)
    return node.domain == CONTRIB and known and not last


def is_quantized(proto: onnx.ModelProto) -> bool:
    """Whether the main graph holds any operator on codes."""
    return any(n.op_type in _PAIR or n.op_type.startswith("QLinear") or n.op_type == "QGemm" for n in proto.graph.node)


def quantizes_channels(proto: onnx.ModelProto) -> bool:
    """Whether activations are quantized with a scale per channel, which onnxruntime's optimiser takes for something else."""
    constants = {t.name: t.dims for t in proto.graph.initializer}
    nodes = [n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]
    return any(int(np.prod(constants.get(node.input[1], ()))) > 1 for node in nodes)


def to_pairs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with QuantizeLinear and DequantizeLinear as the only operators on codes, all of them signed.

    Args:
        proto: checked, without functions; it is not modified.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    writer = _Writer(result.graph, _ranks(proto))
    for node in list(result.graph.node):
        writer.take(node)
    writer.finish()
    kept = [o for o in result.opset_import if o.domain != CONTRIB or _uses(result, CONTRIB)]
    del result.opset_import[:]
    result.opset_import.extend(kept)
    return result


def _uses(proto: onnx.ModelProto, domain: str) -> bool:
    return any(node.domain == domain for node in proto.graph.node)


class _Writer:
    """Rewrites one graph node after node.

    ``_params``: scale and zero point of each value that holds signed codes. ``_public``: codes that somebody outside sees, which
    keep their type. Parameters that are computed as the model runs are left as they are. ``_spread``: for codes of activations
    that had a scale per channel, that scale; see ``_quantize_channels``.
    """

    def __init__(self, graph: onnx.GraphProto, ranks: dict[str, int]) -> None:
        self._graph = graph
        self._arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self._public = _public(graph)
        self._restored, self._ranks = _only_restored(graph), ranks
        self._spread: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._params: dict[str, tuple[str, str]] = {}
        self._count = 0

    def take(self, node: onnx.NodeProto) -> None:
        handler = _HANDLERS.get(node.op_type)
        if node.op_type in _MOVES_CODES and node.input[0] in self._params:
            self._around(node)
        elif handler is None or (node.op_type in _PAIR and not self._is_ours(node)):
            self._nodes.append(node)
        else:
            handler(self, node)

    def finish(self) -> None:
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _is_ours(self, node: onnx.NodeProto) -> bool:
        """Whether a pair's half has constant parameters and codes whose type is nobody else's business."""
        if any(name and name not in self._arrays for name in node.input[1:3]):
            return False
        codes = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        if node.op_type == "DequantizeLinear":
            return codes in self._arrays or codes in self._params
        return codes not in self._public

    # --- handlers --------------------------------------------------------------------------------------------------

    def quantize(self, node: onnx.NodeProto) -> None:
        """Signed; a constant is quantized here and now."""
        scale, point = node.input[1], node.input[2] if len(node.input) > 2 else ""
        array, axis = self._arrays.get(node.input[0]), _axis(node)
        if array is not None and scale in self._arrays:
            codes, signed = self._codes(array, scale, point, axis)
            self._arrays[node.output[0]] = codes
            self._graph.initializer.append(numpy_helper.from_array(codes, node.output[0]))
            self._params[node.output[0]] = (scale, signed)
            return
        if self._arrays[scale].size > 1 and self._is_spreadable(node, point):
            self._quantize_channels(node, scale, point, axis)
            return
        self._quantize(node.input[0], scale, self._signed(point), node.output[0], node.name)

    def _is_spreadable(self, node: onnx.NodeProto, point: str) -> bool:
        """Whether a scale per channel can stand outside of the pair: codes only restored, one zero point, a known rank."""
        points = self._arrays[point] if point else np.zeros(1)
        known = node.input[0] in self._ranks and node.output[0] in self._restored
        return known and bool((points == points.flat[0]).all())

    def _quantize_channels(self, node: onnx.NodeProto, scale: str, point: str, axis: int) -> None:
        """An activation with a scale per channel, as NNCF writes it before depthwise convolutions: x / scale is quantized in steps
        of one, and multiplied again behind. No target has a kernel for such codes, and onnxruntime fuses them into a QLinearConv
        that fails as it runs ("input zero point must be a scalar")."""
        rank = self._ranks[node.input[0]]
        shape = [-1 if i == axis % rank else 1 for i in range(rank)]
        steps = self._initializer(self._arrays[scale].reshape(shape))
        shares, one = self._fresh(node.output[0]), self._initializer(np.ones((), np.float32))
        zero = self._initializer(self._arrays[self._signed(point)].reshape(-1)[:1].reshape(()))
        self._nodes.append(helper.make_node("Div", [node.input[0], steps], [shares], f"{node.name}/shares"))
        self._quantize(shares, one, zero, node.output[0], node.name)
        self._spread[node.output[0]] = steps

    def dequantize(self, node: onnx.NodeProto) -> None:
        if node.input[0] in self._spread:
            (one, point), shares = self._params[node.input[0]], self._fresh(node.output[0])
            self._nodes.append(helper.make_node("DequantizeLinear", [node.input[0], one, point], [shares], node.name))
            steps = self._spread[node.input[0]]
            self._nodes.append(helper.make_node("Mul", [shares, steps], node.output, f"{node.name}/steps"))
            return
        codes, point = self._stored(node.input[0], node.input[2] if len(node.input) > 2 else "")
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        made = helper.make_node("DequantizeLinear", [codes, node.input[1], point], node.output, node.name, **attributes)
        self._nodes.append(made)

    def convolution(self, node: onnx.NodeProto) -> None:
        x, xs, xz, w, ws, wz, ys, yz, *bias = node.input
        operands = [self._real(x, xs, xz), self._real(w, ws, wz, axis=0)]
        operands += [self._bias(name, xs, ws) for name in bias if name]
        self._requantize(node, "Conv", operands, ys, yz, _kept(node))

    def matmul(self, node: onnx.NodeProto) -> None:
        a, a_s, az, b, bs, bz, ys, yz = node.input
        self._requantize(node, "MatMul", [self._real(a, a_s, az), self._real(b, bs, bz, axis=1)], ys, yz, {})

    def gemm(self, node: onnx.NodeProto) -> None:
        a, a_s, az, b, bs, bz, *rest = node.input
        attributes = _kept(node)
        columns = 0 if attributes.get("transB") else 1
        operands = [self._real(a, a_s, az), self._real(b, bs, bz, axis=columns)]
        operands += [self._bias(rest[0], a_s, bs)] if rest and rest[0] else []
        if len(rest) > 1 and rest[1]:
            self._requantize(node, "Gemm", operands, rest[1], rest[2] if len(rest) > 2 else "", attributes)
        else:
            self._nodes.append(helper.make_node("Gemm", operands, node.output, node.name, **attributes))

    def unary(self, node: onnx.NodeProto) -> None:
        x, xs, xz, ys, *yz = node.input
        attributes, operands = _kept(node), [self._real(x, xs, xz)]
        axes = attributes.pop("axes", None) if node.op_type == "QLinearReduceMean" else None
        if axes is not None:
            operands.append(self._initializer(np.asarray(axes, np.int64)))
        self._requantize(node, _UNARY[node.op_type], operands, ys, yz[0] if yz else "", attributes)

    def binary(self, node: onnx.NodeProto) -> None:
        a, a_s, az, b, bs, bz, ys, *yz = node.input
        operands = [self._real(a, a_s, az), self._real(b, bs, bz)]
        self._requantize(node, _BINARY[node.op_type], operands, ys, yz[0] if yz else "", {})

    def concat(self, node: onnx.NodeProto) -> None:
        ys, yz, *parts = node.input
        operands = [self._real(parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]
        self._requantize(node, "Concat", operands, ys, yz, _kept(node))

    def where(self, node: onnx.NodeProto) -> None:
        condition, x, xs, xz, y, ys, yz, zs, zz = node.input
        operands = [condition, self._real(x, xs, xz), self._real(y, ys, yz)]
        self._requantize(node, "Where", operands, zs, zz, {})

    def _around(self, node: onnx.NodeProto) -> None:
        """An operator that moves codes, on the real numbers instead."""
        scale, point = self._params[node.input[0]]
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        moved.input[0] = self._real(node.input[0], scale, point)
        for i, name in enumerate(node.output):
            moved.output[i] = self._fresh(name)
        self._nodes.append(moved)
        for inner, name in zip(moved.output, node.output, strict=True):
            self._quantize(inner, scale, point, name, f"{name}/Q")

    # --- parts -----------------------------------------------------------------------------------------------------

    def _requantize(
        self,
        node: onnx.NodeProto,
        op_type: str,
        operands: Sequence[str],
        scale: str,
        point: str,
        attributes: dict[str, Any],
    ) -> None:
        inner, output = self._fresh(node.output[0]), node.output[0]
        self._nodes.append(helper.make_node(op_type, list(operands), [inner], node.name, **attributes))
        if output in self._public:
            kept = [scale, point] if point else [scale]
            self._nodes.append(helper.make_node("QuantizeLinear", [inner, *kept], [output], f"{output}/Q"))
        else:
            self._quantize(inner, scale, self._signed(point), output, f"{output}/Q")

    def _quantize(self, real: str, scale: str, point: str, output: str, name: str) -> None:
        self._nodes.append(helper.make_node("QuantizeLinear", [real, scale, point], [output], name))
        self._params[output] = (scale, point)

    def _real(self, codes: str, scale: str, point: str = "", axis: int | None = None) -> str:
        if codes in self._arrays or codes in self._params:
            stored, signed = self._stored(codes, point)
        else:  # somebody outside made these codes, in a type that stays
            stored, signed = codes, point or self._initializer(np.zeros((), np.uint8))
        output = self._fresh(f"{codes}/real")
        attributes: dict[str, Any] = {"axis": axis} if axis is not None and self._arrays[scale].size > 1 else {}
        if not attributes and self._arrays[scale].ndim:
            scale, signed = (self._initializer(self._arrays[name].reshape(())) for name in (scale, signed))
        made = helper.make_node("DequantizeLinear", [stored, scale, signed], [output], f"{output}/DQ", **attributes)
        self._nodes.append(made)
        return output

    def _bias(self, codes: str, scale_in: str, scale_weight: str) -> str:
        """int32 codes with scale = s_in * s_w, as the operator defines them."""
        scale = self._arrays[scale_in].reshape(()) * self._arrays[scale_weight].astype(np.float32)
        name = self._initializer(np.asarray(scale, np.float32))
        point = self._initializer(np.zeros(np.shape(scale), np.int32))
        output = self._fresh(f"{codes}/real")
        attributes: dict[str, Any] = {"axis": 0} if np.ndim(scale) and scale.size > 1 else {}
        if not attributes:
            name, point = (self._initializer(self._arrays[part].reshape(())) for part in (name, point))
        self._nodes.append(helper.make_node("DequantizeLinear", [codes, name, point], [output], **attributes))
        return output

    def _stored(self, codes: str, point: str) -> tuple[str, str]:
        """Codes and zero point, both signed."""
        array = self._arrays.get(codes)
        if array is None:
            return codes, self._params[codes][1] if codes in self._params else self._signed(point)
        if array.dtype == np.uint8:
            codes = self._initializer((array.astype(np.int16) - OFFSET).astype(np.int8))
            return codes, self._signed(point)
        # A zero point of its own: what an activation reads may later become uint8 without the constants.
        zero = self._arrays[self._signed(point)] if point else np.zeros((), array.dtype)
        return codes, self._initializer(zero)

    def _signed(self, point: str) -> str:
        """The zero point as int8 (or int16); ONNX: without one, codes are uint8 around 0."""
        array = self._arrays[point] if point else np.zeros((), np.uint8)
        if array.dtype == np.uint8:
            return self._initializer((array.astype(np.int16) - OFFSET).astype(np.int8))
        if array.dtype == np.uint16:
            return self._initializer((array.astype(np.int32) - (1 << 15)).astype(np.int16))
        return point

    def _codes(self, array: Array, scale: str, point: str, axis: int) -> tuple[Array, str]:
        """A constant's codes by QuantizeLinear's formula, and the zero point's name."""
        signed = self._signed(point)
        steps, zero = self._arrays[scale], self._arrays[signed]
        shape = [-1 if steps.size > 1 and i == axis % array.ndim else 1 for i in range(array.ndim)]
        limits = np.iinfo(zero.dtype)
        codes = np.rint(array / steps.reshape(shape)) + zero.reshape(shape)
        return np.clip(codes, limits.min, limits.max).astype(zero.dtype), signed

    def _initializer(self, array: Array) -> str:
        name = self._fresh("stored")
        self._arrays[name] = array
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}/{self._count}"


def _public(graph: onnx.GraphProto) -> set[str]:
    """Values that are graph outputs or read by anything but operators on codes, and what such values are moved from."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    public = {value.name for value in graph.output}
    for node in reversed(graph.node):
        for name in (*node.output, *node.input):
            users = readers.get(name, [])
            moved = [user for user in users if user.op_type in _MOVES_CODES]
            others = [user for user in users if user not in moved and user.op_type not in _HANDLERS]
            if others or any(output in public for user in moved for output in user.output):
                public.add(name)
    return public


def _only_restored(graph: onnx.GraphProto) -> set[str]:
    """Codes of QuantizeLinear that are read by DequantizeLinear alone."""
    made = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    read = {name for node in graph.node if node.op_type != "DequantizeLinear" for name in node.input}
    return made - read - {value.name for value in graph.output}


def _ranks(proto: onnx.ModelProto) -> dict[str, int]:
    """The number of dimensions of each value, where onnx can tell."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    typed = (v for v in (*graph.value_info, *graph.input, *graph.output) if v.type.tensor_type.HasField("shape"))
    return {v.name: len(v.type.tensor_type.shape.dim) for v in typed}


def _axis(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def _kept(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name not in _DROPPED}


_Handler = Callable[[_Writer, onnx.NodeProto], None]


def _handlers() -> Iterable[tuple[str, _Handler]]:
    yield from ((name, _Writer.unary) for name in _UNARY)
    yield from ((name, _Writer.binary) for name in _BINARY)


_HANDLERS: Final[dict[str, _Handler]] = {
    "QuantizeLinear": _Writer.quantize,
    "DequantizeLinear": _Writer.dequantize,
    "QLinearConv": _Writer.convolution,
    "QLinearMatMul": _Writer.matmul,
    "QGemm": _Writer.gemm,
    "QLinearConcat": _Writer.concat,
    "QLinearWhere": _Writer.where,
    **dict(_handlers()),
}
