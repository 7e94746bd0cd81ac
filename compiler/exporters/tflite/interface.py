"""The file's inputs and outputs, and which nodes compute in float although the file should not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.errors import Refusal
from compiler.exporters.base import ISLAND_REMEDY, ExportOptions, signature
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, name_of, rank_of, shape_of
from compiler.exporters.tflite.tensors import QuantParams, Tensor
from profiles.schema import IntegerIO

if TYPE_CHECKING:
    import onnx_ir as ir

Port = tuple[str, Tensor]
FLOATS = (np.dtype(np.float32), np.dtype(np.float16))
UINT8_OFFSET = 128


def input_port(context: LoweringContext, value: ir.Value, options: ExportOptions) -> Port:
    """Declare a graph input: in the hub's type, or in integers where they are asked for and the hub quantizes all that reads it.

    Raises Unsupported.
    """
    perm = layout.identity(len(shape_of(value)))
    quant = context.output_quant(value) if options.integer_io is not None else None
    if quant is None or options.integer_io is not IntegerIO.UINT8 or quant.bits != 8:
        return name_of(value), context.produce(value, perm, quant)
    unsigned = context.writer.tensor(name_of(value), shape_of(value), np.dtype(np.uint8), _unsigned(quant))
    context.bind(value, context.quantize(unsigned, quant), perm)
    return name_of(value), unsigned


def output_ports(context: LoweringContext, graph: ir.Graph, taken: set[int], options: ExportOptions) -> list[Port]:
    """One tensor of its own per graph output, in the hub's order, under the hub's name."""
    ports: list[Port] = []
    for value in graph.outputs:
        context.begin(name_of(value), "DequantizeLinear")
        quant = context.quant(value) if options.integer_io is not None else None
        tensor = context.read(value, layout.identity(rank_of(value)), stored=quant is not None)
        if quant is not None and quant.bits == 8 and options.integer_io is IntegerIO.UINT8:
            signed, tensor = (
                tensor,
                context.writer.tensor(name_of(value), tensor.shape, np.dtype(np.uint8), _unsigned(quant)),
            )
            context.emit("QUANTIZE", [signed], [tensor], to=tensor.dtype)
        if tensor.index in taken or tensor.data is not None:
            copy = context.temporary(tensor.shape, tensor)
            sizes = context.literal(np.asarray(tensor.shape, np.int32), "shape")
            context.emit("RESHAPE", [tensor, sizes], [copy])
            tensor = copy
        taken.add(tensor.index)
        context.writer.rename(tensor, name_of(value))
        ports.append((name_of(value), tensor))
    return ports


def _unsigned(quant: QuantParams) -> QuantParams:
    return QuantParams(quant.scale, tuple(point + UINT8_OFFSET for point in quant.zero_point))


def islands(context: LoweringContext, graph: ir.Graph, inputs: list[Port], outputs: list[Port]) -> list[Refusal]:
    """One refusal per node that computes in float, and per port that is float; conversions themselves are not counted."""
    nodes = {node.name or "": node for node in graph.all_nodes()}
    found = {origin: _island(nodes.get(origin), origin) for origin in context.writer.floating(FLOATS)}
    for kind, ports in (("input", inputs), ("output", outputs)):
        for name, tensor in ports:
            if tensor.dtype in FLOATS:
                found.setdefault(name, _refusal(name, kind, "it is float32: no integer operator is next to it"))
    return list(found.values())


def _island(node: ir.Node | None, origin: str) -> Refusal:
    reason = "it would compute in float32"
    if node is None:
        return _refusal(origin, "output", reason)
    return Refusal(origin, node.op_type, reason, "tflite", ISLAND_REMEDY, signature(node))


def _refusal(name: str, op_type: str, reason: str) -> Refusal:
    return Refusal(name, op_type, reason, "tflite", ISLAND_REMEDY)
