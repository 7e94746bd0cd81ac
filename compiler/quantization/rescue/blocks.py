"""Blocks: straight runs of int8 layers with what stands between them, small enough to be put right together.

A block begins at a layer and follows the value it makes while that has a single reader: activations belong to it, and the next
Conv or Gemm too, until MOST_LAYERS are in it. Its input is what the quantized model computes there, its target what the float
model computes at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import Dataset
from compiler.pruning.activations import stream
from compiler.quantization.rescue.candidate import Candidate
from compiler.quantization.structure import constant_of, name_of, value_name
from runtimes.session import Array

MOST_LAYERS: Final = 3  # an inverted residual's expansion, depthwise layer and projection
LAYERS: Final = ("Conv", "Gemm")
BETWEEN: Final = ("Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh")
SAMPLES: Final = 64
MOST_BYTES: Final = 64 << 20  # of inputs and targets held for one block


@dataclass(frozen=True, slots=True)
class Block:
    """``nodes`` in order, layers and activations. ``source``: its input in the quantized hub; ``target``: its output's name."""

    nodes: tuple[ir.Node, ...]
    source: str
    target: str

    @property
    def layers(self) -> tuple[ir.Node, ...]:
        return tuple(node for node in self.nodes if node.op_type in LAYERS)


def find_blocks(start: Candidate, quantized: ir.Model) -> list[Block]:
    """Blocks in graph order; every int8 layer with a constant weight is in one at most."""
    sources = {name_of(node): node.inputs[0] for node in quantized.graph if node.inputs and node.name}
    taken: set[str] = set()
    found = []
    for node in start.reference.graph:
        if name_of(node) in taken or not _is_layer(start, node):
            continue
        nodes = _run(start, node, taken)
        source = sources[name_of(node)]
        if source is not None and source.name:
            taken |= {name_of(n) for n in nodes}
            found.append(Block(tuple(nodes), source.name, value_name(nodes[-1].outputs[0])))
    return found


def _is_layer(start: Candidate, node: ir.Node) -> bool:
    if node.op_type not in LAYERS or start.spec.constant(name_of(node), 1) is None:
        return False
    weight, source = constant_of(node.inputs[1]), node.inputs[0]
    ranks = (2,) if node.op_type == "Gemm" else (3, 4)
    return weight is not None and weight.ndim in ranks and source is not None and constant_of(source) is None


def _run(start: Candidate, first: ir.Node, taken: set[str]) -> list[ir.Node]:
    nodes, layers = [first], 1
    while (reader := _only_reader(nodes[-1].outputs[0])) is not None and name_of(reader) not in taken:
        if _is_layer(start, reader):
            layers += 1
            if layers > MOST_LAYERS:
                break
        elif reader.op_type not in BETWEEN:
            break
        nodes.append(reader)
    return nodes


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output() else None


def block_data(reference: ir.Model, quantized: ir.Model, block: Block, data: Dataset) -> tuple[Array, Array]:
    """Inputs [samples, ...] as the quantized model makes them and targets [samples, ...] as the float model does."""
    few = data.take(min(SAMPLES, max(8, MOST_BYTES // max(_bytes(block), 1))))
    inputs = _joined(stream(quantized, [block.source], few.feeds), block.source)
    targets = _joined(stream(reference, [block.target], few.feeds), block.target)
    return inputs, targets


def _bytes(block: Block) -> int:
    sizes = [value.shape for value in (block.nodes[0].inputs[0], block.nodes[-1].outputs[0]) if value is not None]
    return sum(4 * int(np.prod([d for d in shape if isinstance(d, int)])) for shape in sizes if shape is not None)


def _joined(parts: Iterable[Mapping[str, Array]], name: str) -> Array:
    return np.concatenate([part[name] for part in parts])
