"""What every importer does once it holds an ONNX model: inline, fix shapes, convert the opset, clean up, check the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx import helper, version_converter

from compiler.decompose.bodies import inline_bodies, typed
from compiler.decompose.settle import decompose
from compiler.errors import Refusal, SourceError, UnsupportedModel
from compiler.hub import HUB_IR_VERSION, HUB_OPSET, SIZED_BY_DATA
from compiler.importers.base import ImportOptions
from compiler.importers.branches import select_branches
from compiler.importers.newer_operators import lower_newer_operators
from compiler.importers.quantized import is_known, is_quantized, to_pairs
from compiler.importers.static_shapes import select_by_constants
from compiler.importers.unroll import unroll
from compiler.importers.wide_floats import unreadable_bits, widen_floats
from compiler.passes import clean_up

_DEFAULT_DOMAINS = ("", "ai.onnx")
_POOLS = ("AveragePool", "MaxPool", "LpPool")
# Functions that are inlined at import: onnx infers no shape for their results, or no format has the operator.
_INLINED = ("MeanVarianceNormalization", "GroupNormalization", "DynamicQuantizeLinear")
# Operators that a further round may replace: what decides them may have become constant.
_UNSETTLED = ("If", "Loop", "Scan", "Compress", "CastLike")
MAX_ROUNDS = 4
_OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


def to_hub(proto: onnx.ModelProto, options: ImportOptions) -> ir.Model:
    """Bring a checked ONNX model with all tensors inside it into the form of compiler/hub.py. ``proto`` is changed.

    Raises:
        SourceError: free dimensions remain, or the opset cannot be converted.
        UnsupportedModel: operators of other domains, data-dependent shapes.
    """
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    _refuse([*_foreign_operators(proto), *unreadable_bits(proto)])
    _drop_weight_inputs(proto)
    widen_floats(proto)
    if is_quantized(proto):
        proto = to_pairs(proto)
    fix_input_shapes(proto, options)
    proto = _inline_functions(proto)
    model = clean_up(ir.from_proto(_drop_windows_in_padding(unroll(_convert_opset(proto)))))
    transforms = {str(node.name) for node in model.graph if node.op_type == "STFT"}
    if transforms:  # onnx infers two-sided shapes for one-sided results, so nothing behind them would fit
        decompose(model, transforms)
        model = clean_up(model)
    for _ in range(MAX_ROUNDS):
        left = [node.op_type for node in model.graph if node.op_type in _UNSETTLED]
        if not left:
            break
        model = clean_up(ir.from_proto(_settled(ir.to_proto(model))))
        if left == [node.op_type for node in model.graph if node.op_type in _UNSETTLED]:
            break
    _refuse([*_unfit_values(model)])
    return model


def _settled(proto: onnx.ModelProto) -> onnx.ModelProto:
    select_by_constants(proto)
    proto = select_branches(unroll(proto))
    return inline_bodies(typed(proto), lambda node: node.op_type == "CastLike", HUB_OPSET)[0]


def _inline_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of _INLINED in place, at the source's opset, where the meaning of their inputs is the source's."""
    if not any(node.op_type in _INLINED for node in proto.graph.node):
        return proto
    opset = next((o.version for o in proto.opset_import if o.domain in _DEFAULT_DOMAINS), 0)
    return inline_bodies(typed(proto), lambda node: node.op_type in _INLINED, opset)[0]


def _drop_windows_in_padding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A last window of ceil_mode that starts in the padding does not count; rounding down then says the same.

    Source: the formulas of AveragePool and MaxPool from opset 22 on, which onnxruntime follows at every opset; onnx's shape
    inference at the hub's opset does not.
    """
    pools = [node for node in proto.graph.node if node.op_type in _POOLS]
    if not any(a.name == "ceil_mode" and a.i for node in pools for a in node.attribute):
        return proto
    proto = typed(proto)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.value_info, *proto.graph.input)
    }
    for node in proto.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type not in _POOLS or not attributes.get("ceil_mode") or node.input[0] not in shapes:
            continue
        sizes, kernel = shapes[node.input[0]][2:], attributes["kernel_shape"]
        strides, pads = attributes.get("strides", [1] * len(kernel)), attributes.get("pads", [0] * 2 * len(kernel))
        dilations = attributes.get("dilations", [1] * len(kernel))
        for i, size in enumerate(sizes):
            reach = size + pads[i] + pads[i + len(kernel)] - (kernel[i] - 1) * dilations[i] - 1
            if -(-reach // strides[i]) * strides[i] >= size + pads[i]:
                next(a for a in node.attribute if a.name == "ceil_mode").i = 0
                break
    return proto


def _drop_weight_inputs(proto: onnx.ModelProto) -> None:
    """Up to IR version 3 every initializer had to be an input too; as such it counts as something the caller feeds."""
    initializers = {tensor.name for tensor in proto.graph.initializer}
    fed = [value for value in proto.graph.input if value.name not in initializers]
    del proto.graph.input[:]
    proto.graph.input.extend(fed)


def fix_input_shapes(proto: onnx.ModelProto, options: ImportOptions) -> None:
    """Give every input a static shape, in place. Symbols that two inputs share get one size.

    Raises:
        SourceError: ``input_shapes`` names no input or contradicts the model, or free dimensions remain.
    """
    wanted = options.input_shapes or {}
    names = [value.name for value in proto.graph.input]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise SourceError(
            f"Input shapes were given for {unknown}, but the model's inputs are {names}.",
            remedy="Name the model's own inputs.",
        )
    symbols: dict[str, int] = {}
    for value in proto.graph.input:
        _apply_shape(value, wanted.get(value.name), options.batch, symbols)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    open_inputs = [_describe(v) for v in proto.graph.input if not _is_static(v) and 0 not in wanted.get(v.name, ())]
    if open_inputs:
        raise SourceError(
            f"Edge runtimes need static shapes, and these inputs have free ones: {', '.join(open_inputs)}.",
            remedy="Give their full shapes with --input-shape NAME=1x3x224x224 (input_shapes in Python).",
        )


def _apply_shape(value: onnx.ValueInfoProto, wanted: Sequence[int] | None, batch: int, symbols: dict[str, int]) -> None:
    tensor = value.type.tensor_type
    if wanted is not None and not tensor.HasField("shape"):
        tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in wanted)
    dims = tensor.shape.dim
    if wanted is not None and len(wanted) != len(dims):
        raise SourceError(
            f"Input {value.name!r} has {len(dims)} dimensions, the given shape {tuple(wanted)} has {len(wanted)}.",
            remedy="Give one size per dimension.",
        )
    sizes = wanted if wanted is not None else [batch if i == 0 else 0 for i in range(len(dims))]
    for index, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
        if dim.dim_value > 0:
            if wanted is not None and dim.dim_value != size:
                raise SourceError(
                    f"Input {value.name!r} has size {dim.dim_value} in dimension {index}, the given shape says {size}.",
                    remedy="Change free dimensions only.",
                )
        elif size > 0:
            if dim.dim_param:
                symbols.setdefault(dim.dim_param, size)
            dim.dim_value = size


def _is_static(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim)


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return f"{value.name} (rank unknown)"
    return f"{value.name}[{'x'.join(str(d.dim_value or d.dim_param or '?') for d in tensor.shape.dim)}]"


def _convert_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Convert to HUB_OPSET with onnx's own converter; old value infos go, since they may hold the free sizes."""
    del proto.graph.value_info[:]
    opset = next((o.version for o in proto.opset_import if o.domain in _DEFAULT_DOMAINS), 0)
    proto.ir_version = HUB_IR_VERSION
    if opset == HUB_OPSET:
        return proto
    if opset > HUB_OPSET:
        return lower_newer_operators(proto, opset)
    try:
        converted = version_converter.convert_version(proto, HUB_OPSET)
    except Exception as error:  # C++: ConvertError, RuntimeError and IndexError alike
        raise SourceError(
            f"The model's opset {opset} cannot be converted to {HUB_OPSET}: {str(error).strip().splitlines()[0]}",
            remedy=f"Export the model again with opset {HUB_OPSET}.",
        ) from error
    converted.ir_version = HUB_IR_VERSION
    return converted


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)


def _foreign_operators(proto: onnx.ModelProto) -> Iterator[Refusal]:
    opset = next((o.version for o in proto.opset_import if o.domain in _DEFAULT_DOMAINS), 0)
    for node in _nodes(proto.graph):
        if node.domain not in _DEFAULT_DOMAINS:
            if is_known(node):
                continue
            reason = f"it belongs to the domain {node.domain!r}, not to the ONNX standard"
            yield Refusal(node.name or node.output[0], node.op_type, reason, "import")
        elif node.op_type == "Scan" and opset < 9:
            reason = "before opset 9 it had a batch axis of its own"
            yield Refusal(
                node.name or node.output[0], "Scan", reason, "import", "Export the model with opset 9 or newer."
            )


def _unfit_values(model: ir.Model) -> Iterator[Refusal]:
    for node in model.graph:
        for value in (*node.inputs, *node.outputs):
            if node.op_type != "Cast" and value is not None and value.dtype in _OTHER_FLOATS:
                reason = f"{value.name!r} is {value.dtype}, the hub is float32"
                yield Refusal(node.name or "", node.op_type, reason, "import", "Export the model in float32.")
                break
        for value in node.outputs:
            if node.op_type in SIZED_BY_DATA and value.is_graph_output() and not value.uses():
                continue
            if value.name and (value.shape is None or not all(isinstance(d, int) for d in value.shape)):
                reason = f"the shape of {value.name!r} depends on data or is unknown: {value.shape}"
                yield Refusal(node.name or "", node.op_type, reason, "import", _remedy(node))


def _remedy(node: ir.Node) -> str:
    if node.op_type in SIZED_BY_DATA:
        return "End the model there: its result may be an output, and what comes after is done by the caller."
    return "Give it inputs of fixed shapes, or leave it and what follows to the caller."


def _refuse(refusals: list[Refusal]) -> None:
    if refusals:
        raise UnsupportedModel(refusals)
