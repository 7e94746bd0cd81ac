"""Each quantized layer alone: fed the integers that onnxruntime had there, does an artifact give the integers that it gave?

End to end, a difference of one step grows over fifty layers as any perturbation of a deep net does. Layer by layer it cannot, so
what is left is the kernels' own arithmetic. A layer is what lies between the quantizations of its inputs and of its output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from compiler.exporters.base import ExportOptions
from compiler.hub_session import open_hub
from compiler.passes.serialize import to_bytes
from profiles.schema import Precision
from runtimes.registry import open_session
from runtimes.session import Array, Feeds

if TYPE_CHECKING:
    from compiler.exporters.base import Exporter

SUFFIX = "/value"  # of a layer's float inputs


@dataclass(frozen=True, slots=True)
class Layer:
    """A part of a quantized hub as a model of its own, from and to float values that are exact multiples of their scales.

    ``inputs``: by the name of the part's input, the QuantizeLinear output that feeds it. ``output``: the one that it computes.
    """

    name: str
    op_types: tuple[str, ...]
    model: ir.Model
    inputs: Mapping[str, str]
    output: str


@dataclass(frozen=True, slots=True)
class LayerAgreement:
    """``share_*`` of the layer's output integers, over all samples. ``notes``: what the exporter says about it."""

    layer: str
    op_types: tuple[str, ...]
    elements: int
    share_equal: float
    share_within_one: float
    max_steps: int
    notes: tuple[str, ...] = ()


def layers(model: ir.Model) -> list[Layer]:
    """The layers of a quantized hub, in order. A QuantizeLinear of a graph input is none."""
    proto = onnx.load_model_from_string(to_bytes(model))
    return [layer for layer in _Split(proto).layers() if layer is not None]


class _Split:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._producer = {name: node for node in proto.graph.node for name in node.output if name}
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._types = {v.name: v for v in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)}

    def layers(self) -> list[Layer | None]:
        return [self._layer(node) for node in self._proto.graph.node if self._quantizes_an_activation(node)]

    def _quantizes_an_activation(self, node: onnx.NodeProto | None) -> bool:
        return node is not None and node.op_type == "QuantizeLinear" and node.input[0] not in self._constants

    def _layer(self, last: onnx.NodeProto) -> Layer | None:
        """What ``last`` quantizes, back to the DequantizeLinears of other activations; None where a graph input is before that."""
        found: dict[str, onnx.NodeProto] = {}
        boundary: dict[str, onnx.NodeProto] = {}
        waiting = [last.input[0]]
        while waiting:
            node = self._producer.get(waiting.pop())
            if node is None:
                return None
            if node.name in found:
                continue
            found[node.name] = node
            if node.op_type == "DequantizeLinear" and self._quantizes_an_activation(self._producer.get(node.input[0])):
                boundary[node.input[0]] = self._producer[node.input[0]]
            else:
                waiting += [name for name in node.input if name and name not in self._constants]
        ordered = [node for node in self._proto.graph.node if node.name in found]
        return self._model(last, ordered, boundary) if boundary else None

    def _model(self, last: onnx.NodeProto, nodes: list[onnx.NodeProto], boundary: dict[str, onnx.NodeProto]) -> Layer:
        quantize = []
        for name, node in boundary.items():
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[0] = name + SUFFIX
            quantize.append(copy)
        back = helper.make_node(
            "DequantizeLinear", [last.output[0], *last.input[1:]], [last.output[0] + SUFFIX], "back"
        )
        everything = [*quantize, *nodes, last, back]
        names = {name for node in everything for name in node.input}
        infos = [self._float(name + SUFFIX, node.input[0]) for name, node in boundary.items()]
        graph = helper.make_graph(
            everything,
            last.name,
            infos,
            [self._float(last.output[0] + SUFFIX, last.input[0])],
            [tensor for name, tensor in self._constants.items() if name in names],
            value_info=[self._types[n] for node in everything for n in node.output if n in self._types],
        )
        whole = helper.make_model(graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version)
        op_types = tuple(node.op_type for node in nodes if node.op_type not in ("QuantizeLinear", "DequantizeLinear"))
        inputs = {name + SUFFIX: name for name in boundary}
        return Layer(last.name, op_types, ir.from_proto(whole), inputs, last.output[0])

    def _float(self, name: str, like: str) -> onnx.ValueInfoProto:
        shape = [dim.dim_value for dim in self._types[like].type.tensor_type.shape.dim]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def agreement(
    model: ir.Model, feeds: Feeds, exporter: Exporter, precision: Precision = Precision.INT8
) -> list[LayerAgreement]:
    """Compare what ``exporter`` writes with onnxruntime on every layer of the quantized hub ``model``, on every sample."""
    parts = layers(model)
    taps = sorted({name for part in parts for name in (*part.inputs.values(), part.output)})
    with open_hub(model, taps=taps) as session:
        recorded = [session.run(sample) for sample in _samples(model, feeds)]
    with TemporaryDirectory() as folder:
        return [
            _compare(part, recorded, exporter, precision, Path(folder) / f"layer{exporter.suffix}") for part in parts
        ]


def _samples(model: ir.Model, feeds: Feeds) -> list[dict[str, Array]]:
    """``feeds`` cut into the batches that the model takes."""
    name = str(model.graph.inputs[0].name)
    batch = model.graph.inputs[0].shape[0] if model.graph.inputs[0].shape else 1
    size = batch if isinstance(batch, int) else 1
    return [{n: a[i : i + size] for n, a in feeds.items()} for i in range(0, len(feeds[name]), size)]


def _compare(
    part: Layer, recorded: Sequence[Mapping[str, Array]], exporter: Exporter, precision: Precision, path: Path
) -> LayerAgreement:
    made = exporter.export(part.model, path, ExportOptions(precision))
    steps = []
    with open_session(path) as session:
        for values in recorded:
            feeds = {name: _real(part, name, values[source]) for name, source in part.inputs.items()}
            scale, zero = _parameters(part, part.output)
            got = np.rint(session.run(feeds)[part.output + SUFFIX] / scale) + zero
            steps.append(np.abs(got - values[part.output].astype(np.float64)).ravel())
    every = np.concatenate(steps)
    return LayerAgreement(
        layer=part.name,
        op_types=part.op_types,
        elements=every.size,
        share_equal=float((every < 0.5).mean()),
        share_within_one=float((every < 1.5).mean()),
        max_steps=int(every.max(initial=0)),
        notes=made.notes,
    )


def _real(part: Layer, name: str, codes: Array) -> Array:
    scale, zero = _parameters(part, part.inputs[name])
    real: Array = ((codes.astype(np.int32) - zero) * np.float32(scale)).astype(np.float32)
    return real


def _parameters(part: Layer, name: str) -> tuple[float, int]:
    """Scale and zero point of the QuantizeLinear that writes ``name``."""
    node = next(node for node in part.model.graph if node.outputs[0].name == name)
    scale, zero = (
        value.const_value.numpy() if value is not None and value.const_value else None for value in node.inputs[1:3]
    )
    assert scale is not None and zero is not None, "the quantized hub's parameters are constants"
    return float(scale.reshape(())), int(zero.reshape(()))


def worst_share(found: Sequence[LayerAgreement]) -> float:
    """The smallest share within one step of any layer; 1 without layers."""
    return min((one.share_within_one for one in found), default=1.0)
