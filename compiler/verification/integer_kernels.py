"""Which integer kernels onnxruntime really engages for a quantized .onnx file, and what it computes in float all the same.

A QDQ model only asks for integers: onnxruntime decides when it optimises the graph, and where a pattern does not match, the pairs
stay and the node between them computes in float without a word. So the optimised graph is written out and read.

Source: onnxruntime, core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.cc (what it can fuse).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtimes.errors import ModelLoadError

if TYPE_CHECKING:
    import onnx

_PAIR: Final = ("QuantizeLinear", "DequantizeLinear")
_LAYOUT: Final = ("ReorderInput", "ReorderOutput")  # around a float convolution, which is named itself
_INTEGER: Final = (
    "QGemm",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulNBits",
)
# Operators that onnxruntime can turn into an integer kernel, or drop, or run on codes, if their pairs fit.
FUSIBLE: Final = frozenset(
    {
        *(
            "Conv",
            "Gemm",
            "MatMul",
            "Add",
            "Mul",
            "Sigmoid",
            "LeakyRelu",
            "Softmax",
            "AveragePool",
            "GlobalAveragePool",
        ),
        *(
            "Concat",
            "Where",
            "Relu",
            "Clip",
            "MaxPool",
            "Resize",
            "Reshape",
            "Transpose",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
        ),
        *(
            "Slice",
            "Gather",
            "Split",
            "Expand",
            "Identity",
            "DepthToSpace",
            "ReduceMean",
            "ArgMax",
            "Pad",
            "Max",
            "Min",
        ),
    }
)
_PRECISION_KEY: Final = "edgewright.precision"


@dataclass(frozen=True, slots=True)
class FloatNode:
    """A node that computes in float, by the name and type that onnxruntime gives it, and why."""

    node: str
    op_type: str
    why: str


@dataclass(frozen=True, slots=True)
class Kernels:
    """``integer``: integer kernels by type. ``on_codes``: other nodes that work on integers directly, such as Reshape.
    ``conversions``: QuantizeLinear and DequantizeLinear inside the graph, which cost time; those at its edges are not counted.
    """

    integer: dict[str, int]
    on_codes: int
    float_nodes: tuple[FloatNode, ...]
    conversions: int


def inspect_kernels(path: Path) -> Kernels:
    """Read what onnxruntime makes of ``path`` on the CPU.

    Raises:
        ModelLoadError: onnxruntime cannot load the file, or cannot write its optimised graph.
    """
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # it warns that the written graph suits this machine only, which is what is wanted
    with tempfile.TemporaryDirectory(prefix="edgewright-kernels-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            optimised = onnx.load(options.optimized_model_filepath)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelLoadError(
                f"{path.name}: onnxruntime could not write its optimised graph: {error}", remedy="Check the file."
            ) from error
    return _read(optimised.graph, _by_name(onnx.load(path, load_external_data=False).graph))


def _by_name(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The file's nodes by name and by output: onnxruntime keeps the one or the other."""
    return {name: node for node in graph.node for name in (*node.output, node.name) if name}


def _read(graph: onnx.GraphProto, source: Mapping[str, onnx.NodeProto]) -> Kernels:
    floats = _float_values(graph)
    inputs, outputs = {value.name for value in graph.input}, {value.name for value in graph.output}
    integer: Counter[str] = Counter()
    float_nodes, on_codes, conversions = [], 0, 0
    for node in graph.node:
        if node.op_type in _PAIR:
            edge = node.input[0] in inputs if node.op_type == "QuantizeLinear" else node.output[0] in outputs
            conversions += not edge
        elif _is_integer(node):
            integer[node.op_type] += 1
        elif node.op_type in _LAYOUT:
            continue
        elif any(name in floats for name in node.output):
            float_nodes.append(_float_node(node, source))
        else:
            on_codes += 1
    return Kernels(dict(sorted(integer.items())), on_codes, tuple(float_nodes), conversions)


def _float_values(graph: onnx.GraphProto) -> set[str]:
    """Names of the float tensors. Values that onnxruntime made itself have no type in the file: theirs is their input's."""
    import onnx

    typed = (*graph.value_info, *graph.input, *graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in typed} | {t.name: t.data_type for t in graph.initializer}
    floats = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}
    for node in graph.node:
        made = node.op_type == "DequantizeLinear" or (
            node.op_type != "QuantizeLinear" and not _is_integer(node) and bool({*node.input[:1]} & floats)
        )
        floats.update(name for name in node.output if made and name not in types)
    return floats


def _is_integer(node: onnx.NodeProto) -> bool:
    return node.op_type.startswith("QLinear") or node.op_type in _INTEGER


def _float_node(node: onnx.NodeProto, source: Mapping[str, onnx.NodeProto]) -> FloatNode:
    # A convolution in onnxruntime's blocked layout is called after its output.
    known = source.get(node.name) or source.get(node.name.removesuffix("_nchwc")) or source.get(node.output[0])
    if known is None:
        return FloatNode(
            node.name or node.output[0], node.op_type, "onnxruntime made it of an operator that it has no kernel for"
        )
    return FloatNode(known.name, known.op_type, _why(known))


def _why(node: onnx.NodeProto) -> str:
    if any(entry.key == _PRECISION_KEY and entry.value == "float32" for entry in node.metadata_props):
        return "planned in float"
    if node.op_type not in FUSIBLE:
        return f"onnxruntime has no integer kernel for {node.op_type}"
    return "onnxruntime did not fuse it with the pairs around it"
