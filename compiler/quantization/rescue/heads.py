"""Heads that put unlike things into one output: the last layer is split into one per stretch of channels of like range.

A YOLO-like head computes boxes, objectness and scores in a single convolution, and one scale for its output leaves the scores a
handful of codes. The parts compute the same numbers from the same input, each with a scale of its own; the concatenation behind
them is left in float (compiler/quantization/mixed.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.channels import ChannelObserver
from compiler.passes.edit import add_initializer
from compiler.pruning.activations import stream
from compiler.quantization.mixed import UNLIKE
from compiler.quantization.rescue.bias import with_corrected
from compiler.quantization.rescue.candidate import Bench, Candidate, candidate
from compiler.quantization.structure import analyse, constant_of, ends_the_model, name_of, value_name

MOST_PARTS = 4
SAMPLES = 64


def split_heads(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` with its heads split and calibrated anew, then that with corrected biases; nothing where none is mixed."""
    if not start.options.split_outputs:
        return
    model = start.reference
    names = _heads(start)
    seen = {name: ChannelObserver() for name in names}
    for values in stream(model, list(seen), bench.train.take(SAMPLES).feeds) if seen else ():
        for name, observer in seen.items():
            observer.update(values[name])
    parts = {name: stretches(observer.high - observer.low) for name, observer in seen.items()}
    mixed = {names[name]: found for name, found in parts.items() if 1 < len(found) <= MOST_PARTS}
    if not mixed:
        return
    result = model.clone()
    for node in [n for n in result.graph if name_of(n) in mixed]:
        _split(result.graph, node, mixed[name_of(node)])
    made = candidate(result, bench.train, replace(start.options))
    detail = ", ".join(f"{name} in {len(found)}" for name, found in mixed.items())
    yield from with_corrected(detail, made, bench)


def _heads(start: Candidate) -> dict[str, str]:
    """Output values of int8 layers behind which only data moves, with the layers' names."""
    structure = analyse(start.reference, start.options.keep_float, start.options.activations)
    found = {}
    for node in start.reference.graph:
        grouped = "group" in node.attributes and node.attributes["group"].as_int() != 1
        if node.op_type in ("Conv", "Gemm") and structure.is_int8(node) and not grouped:
            shape = node.outputs[0].shape
            if shape is not None and len(shape) >= 2 and shape[1] != 1 and ends_the_model(node, structure):
                found[value_name(node.outputs[0])] = name_of(node)
    return found


def stretches(widths: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Runs (start, stop) of channels whose widths differ by UNLIKE times at most; channels that hold nothing join any run."""
    found, start = [], 0
    low = high = 0.0
    for channel, width in enumerate(widths.tolist()):
        if width <= 0:
            continue
        least, most = min(low or width, width), max(high, width)
        if most > UNLIKE * least:
            found.append((start, channel))
            start, least, most = channel, width, width
        low, high = least, most
    return [*found, (start, len(widths))]


def _split(graph: ir.Graph, node: ir.Node, parts: list[tuple[int, int]]) -> None:
    weight, bias = constant_of(node.inputs[1]), constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    assert weight is not None
    axis = 1 if node.op_type == "Gemm" and not _transposed(node) else 0
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    nodes = []
    for index, (start, stop) in enumerate(parts):
        inputs = [
            node.inputs[0],
            add_initializer(graph, f"{node.name}/weight{index}", weight.take(range(start, stop), axis)),
        ]
        if bias is not None:
            rows = np.broadcast_to(bias.reshape(-1), (weight.shape[axis],))[start:stop]
            inputs.append(add_initializer(graph, f"{node.name}/bias{index}", rows))
        part = ir.node(node.op_type, inputs, attributes, name=f"{node.name}/part{index}")
        shape = [stop - start if place == 1 else size for place, size in enumerate(node.outputs[0].shape or ())]
        part.outputs[0].name = f"{value_name(node.outputs[0])}/part{index}"
        part.outputs[0].type, part.outputs[0].shape = node.outputs[0].type, ir.Shape(shape)
        nodes.append(part)
    joined = ir.node("Concat", [part.outputs[0] for part in nodes], {"axis": 1}, name=f"{node.name}/parts")
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [*nodes, joined], [node.outputs[0]], [joined.outputs[0]]
    )


def _transposed(node: ir.Node) -> bool:
    return "transB" in node.attributes and bool(node.attributes["transB"].as_int())
