"""Equalisation through hard swish and SiLU, which scale nothing but multiply by a gate that can be told the true scale.

Both are x * g(x) with a gate g between 0 and 1. A layer's channels may therefore be divided by s[c] > 0 if the gate reads what they
were, and the next layer takes the factor back:

    x * g(x) = s * (x' * g(s * x')),  x' = x / s

So x' and x' * g(...) have channels of like range. s * x' has the old ranges and one scale in int8, but there it costs little: a
channel of small range rounds to 0, where the gate is 1/2 within a fraction of a step. What is paid is one multiplication by a
constant, and the gate and the product as nodes of their own. Every node of it has an integer kernel, unlike one scale per channel
of activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.channels import ChannelObserver
from compiler.calibration.dataset import Dataset
from compiler.passes.edit import add_initializer
from compiler.pruning.activations import stream
from compiler.quantization.rescue.bias import with_corrected
from compiler.quantization.rescue.candidate import Bench, Candidate, candidate
from compiler.quantization.rescue.equalise import Pair, factors, is_layer, layer_behind, only_reader, reach, rescale
from compiler.quantization.structure import name_of, value_name

SAMPLES = 128
UNEVEN = 4.0  # channels within two bits of each other gain nothing that the extra nodes would not cost


@dataclass(frozen=True, slots=True)
class Bridge:
    """Names: ``pair.first``, the layer before; ``pair.between``, what the gate reads; ``product``, the node that gates."""

    pair: Pair
    product: str


def equalise_swish(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` equalised and calibrated anew, then that with corrected biases; nothing without uneven channels there."""
    model, count = equalised_swish(start.reference, find_bridges(start.reference), bench.train)
    if not count:
        return
    made = candidate(model, bench.train, start.options)
    yield from with_corrected(f"{count} bridges", made, bench)


def find_bridges(model: ir.Model) -> list[Bridge]:
    """In graph order."""
    found = [_bridge_from(node) for node in model.graph if is_layer(node)]
    return [bridge for bridge in found if bridge is not None]


def _bridge_from(first: ir.Node) -> Bridge | None:
    x = first.outputs[0]
    product = only_reader(x) if len(x.uses()) == 1 else _gated(x)
    if product is None or product.op_type not in ("HardSwish", "Mul") or x.is_graph_output():
        return None
    behind = layer_behind(product.outputs[0])
    if behind is None or behind[2] or (product.op_type == "Mul" and len(x.uses()) != 2):
        return None
    second = behind[0]
    depthwise = second.op_type == "Conv" and "group" in second.attributes and second.attributes["group"].as_int() > 1
    return Bridge(Pair(name_of(first), name_of(second), value_name(x), False, depthwise), name_of(product))


def _gated(x: ir.Value) -> ir.Node | None:
    """The Mul of x * Sigmoid(x), where x and the gate have no other readers."""
    readers = [use.node for use in x.uses()]
    gate = next((node for node in readers if node.op_type == "Sigmoid"), None)
    product = next((node for node in readers if node.op_type == "Mul"), None)
    if gate is None or product is None or len(gate.outputs[0].uses()) != 1 or gate.outputs[0].is_graph_output():
        return None
    return product if {id(v) for v in product.inputs} == {id(x), id(gate.outputs[0])} else None


def equalised_swish(model: ir.Model, bridges: list[Bridge], dataset: Dataset) -> tuple[ir.Model, int]:
    """A float hub that computes the same, and how many bridges were worth it; ``model`` is not modified."""
    seen = {bridge.pair.between: ChannelObserver() for bridge in bridges}
    for values in stream(model, list(seen), dataset.take(SAMPLES).feeds) if seen else ():
        for name, observer in seen.items():
            observer.update(values[name])
    result, count = model.clone(), 0
    nodes = {name_of(node): node for node in result.graph}
    for bridge in bridges:
        first, second = nodes[bridge.pair.first], nodes[bridge.pair.second]
        # The peak before the gate: what x' has to hold as well, and never less than what comes behind it.
        s = factors(seen[bridge.pair.between].peak, reach(second, bridge.pair.depthwise), bridge.pair)
        if s.max() < UNEVEN * s.min():
            continue
        count += 1
        rescale(result.graph, first, second, s, bridge.pair.depthwise)
        _told(result.graph, nodes[bridge.product], first.outputs[0], s)
    return (result, count) if count else (model, 0)


def _told(graph: ir.Graph, product: ir.Node, x: ir.Value, s: NDArray[np.float64]) -> None:
    """Let the gate of ``product`` read x * s instead of ``x``."""
    name, rank = product.name, len(x.shape or ())
    shape = [-1 if axis == 1 else 1 for axis in range(rank)]
    scale = add_initializer(graph, f"{name}/scale", s.astype(np.float32).reshape(shape))
    scaled = ir.node("Mul", [x, scale], name=f"{name}/scaled")
    _like(scaled.outputs[0], x, f"{name}/true")
    if product.op_type == "Mul":
        gate = next(v.producer() for v in product.inputs if v is not None and v is not x)
        assert gate is not None
        gate.replace_input_with(0, scaled.outputs[0])
        graph.insert_before(gate, scaled)
        return
    gate = ir.node("HardSigmoid", [scaled.outputs[0]], {"alpha": 1 / 6, "beta": 0.5}, name=f"{name}/gate")
    _like(gate.outputs[0], x, f"{name}/gate")
    gated = ir.node("Mul", [x, gate.outputs[0]], name=name)
    _like(gated.outputs[0], product.outputs[0], None)
    ir.convenience.replace_nodes_and_values(
        graph, product, [product], [scaled, gate, gated], [product.outputs[0]], [gated.outputs[0]]
    )


def _like(value: ir.Value, model: ir.Value, name: str | None) -> None:
    value.type, value.shape = model.type, model.shape
    if name is not None:
        value.name = name
