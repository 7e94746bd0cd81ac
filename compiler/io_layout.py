"""`--io-layout nhwc`: images go in and come out with their channels last, in every format, in the manifest and in the vectors.

The hub computes as before between two Transposes, which exporters whose kernels want channels last absorb.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import Dataset, turned
from compiler.calibration.samples import turned_samples
from runtimes.session import Array, Feeds, RuntimeInfo, Session, SessionBase, TensorSpec

TO_LAST: Final = (0, 2, 3, 1)
TO_FIRST: Final = (0, 3, 1, 2)
# What tells where the channels of its input and output are.
_SPATIAL: Final = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "Resize",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
# Element by element: the layout is that of what comes before and after.
_TRANSPARENT: Final = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pad",
        "Relu",
        "Clip",
        "LeakyRelu",
        "PRelu",
        "Sigmoid",
        "Tanh",
        "HardSwish",
        "HardSigmoid",
        "Softmax",
        "Cast",
        "Identity",
        "Concat",
        "Slice",
        "QuantizeLinear",
        "DequantizeLinear",
    }
)


class Layout(StrEnum):
    """Where an image's channels are."""

    NCHW = "NCHW"
    NHWC = "NHWC"


@dataclass(frozen=True, slots=True)
class Turned:
    """``model`` with channels last at the named inputs and outputs; the others are as they were."""

    model: ir.Model
    inputs: frozenset[str]
    outputs: frozenset[str]


def input_layout(value: ir.Value) -> Layout | None:
    """How a rank-4 graph input is laid out, told from the first operators that care; None where none does."""
    return _layout(value, forward=True)


def output_layout(value: ir.Value) -> Layout | None:
    """The same for a graph output, told from what computes it."""
    return _layout(value, forward=False)


def port_layouts(model: ir.Model) -> dict[str, str]:
    """By name, the layout of each input and output that has one."""
    found = [(value.name, input_layout(value)) for value in model.graph.inputs]
    found += [(value.name, output_layout(value)) for value in model.graph.outputs]
    return {str(name): layout.value for name, layout in found if layout is not None}


def _layout(value: ir.Value, *, forward: bool) -> Layout | None:
    if value.shape is None or len(value.shape) != 4:
        return None
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop(0)
        for node in _neighbours(current, forward=forward):
            if node.op_type == "Transpose":
                if tuple(node.attributes["perm"].as_ints()) == (TO_FIRST if forward else TO_LAST):
                    return Layout.NHWC
            elif node.op_type in _SPATIAL:
                return Layout.NCHW
            elif node.op_type in _TRANSPARENT:
                found = node.outputs if forward else [v for v in node.inputs if v is not None]
                more = [v for v in found if v not in seen and v.shape is not None and len(v.shape) == 4]
                seen.update(more)
                waiting += more
    return None


def _neighbours(value: ir.Value, *, forward: bool) -> list[ir.Node]:
    if forward:
        return [use.node for use in value.uses()]
    producer = value.producer()
    return [] if producer is None else [producer]


def channels_last(model: ir.Model) -> Turned:
    """Move the channels of every NCHW input and output last; ``model`` is not modified."""
    result = model.clone()
    graph = result.graph
    inputs = [value for value in graph.inputs if input_layout(value) is Layout.NCHW]
    outputs = [value for value in graph.outputs if output_layout(value) is Layout.NCHW]
    for value in inputs:
        _turn_input(graph, value)
    for value in outputs:
        _turn_output(graph, value)
    return Turned(result, _names(inputs), _names(outputs))


def _names(values: list[ir.Value]) -> frozenset[str]:
    return frozenset(str(v.name).removesuffix("/nchw") for v in values)


def _turn_input(graph: ir.Graph, value: ir.Value) -> None:
    name = str(value.name)
    assert value.shape is not None
    shown = ir.Value(name=name, type=value.type, shape=ir.Shape([value.shape[a] for a in TO_LAST]))
    node = ir.node("Transpose", [shown], {"perm": TO_FIRST}, name=f"{name}/to_nchw", num_outputs=1)
    inner = node.outputs[0]
    inner.name, inner.type, inner.shape = f"{name}/nchw", value.type, value.shape
    value.replace_all_uses_with(inner, replace_graph_outputs=True)
    value.name = f"{name}/nchw"
    graph.inputs[list(graph.inputs).index(value)] = shown
    graph.insert_before(graph[0], node)


def _turn_output(graph: ir.Graph, value: ir.Value) -> None:
    name = str(value.name)
    assert value.shape is not None
    value.name = f"{name}/nchw"
    node = ir.node("Transpose", [value], {"perm": TO_LAST}, name=f"{name}/to_nhwc", num_outputs=1)
    shown = node.outputs[0]
    shown.name, shown.type = name, value.type
    shown.shape = ir.Shape([value.shape[a] for a in TO_LAST])
    graph.outputs[list(graph.outputs).index(value)] = shown
    graph.append(node)


class TurnedSession(SessionBase):
    """The source, asked with channels last where the hub has them so: every answer is the source's own."""

    def __init__(self, inner: Session, turned: Turned) -> None:
        self._inner, self._turned = inner, turned

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_turned_spec(spec, self._turned.inputs) for spec in self._inner.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_turned_spec(spec, self._turned.outputs) for spec in self._inner.outputs)

    @property
    def runtime(self) -> RuntimeInfo:
        return self._inner.runtime

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Raises InputMismatch, InferenceFailed."""
        outputs = self._inner.run(turned_arrays(feeds, self._turned.inputs, TO_FIRST))
        return turned_arrays(outputs, self._turned.outputs, TO_LAST)

    def close(self) -> None:
        self._inner.close()


def _turned_spec(spec: TensorSpec, names: frozenset[str]) -> TensorSpec:
    return spec._replace(shape=tuple(spec.shape[a] for a in TO_LAST)) if spec.name in names else spec


def turned_arrays(arrays: Mapping[str, Array], names: frozenset[str], order: tuple[int, ...]) -> dict[str, Array]:
    """The arrays with the axes of the named ones in ``order``."""
    return {n: np.ascontiguousarray(a.transpose(order)) if n in names else a for n, a in arrays.items()}


def turned_dataset(data: Dataset, names: frozenset[str]) -> Dataset:
    """Samples in the source's layout as the turned hub takes them."""
    return turned(data, {n: turned_samples(a, TO_LAST) if n in names else a for n, a in data.feeds.items()})
