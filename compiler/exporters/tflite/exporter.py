"""The TFLite exporter: walks the hub in order, lowers node after node, collects refusals, writes the file."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.decompose import settle
from compiler.errors import Refusal, UnsupportedModel
from compiler.exporters.base import ExportOptions, ExportResult
from compiler.exporters.tflite.context import LoweringContext, Unsupported, name_of
from compiler.exporters.tflite.driver import lower_nodes
from compiler.exporters.tflite.dynamic import free_batch
from compiler.exporters.tflite.interface import Port, input_port, islands, output_ports
from compiler.exporters.tflite.lazy import skip_unneeded
from compiler.exporters.tflite.relayout import Relayout, relayout
from compiler.exporters.tflite.tensors import Weights
from compiler.exporters.tflite.writer import MAX_FILE_BYTES, GraphWriter
from profiles.schema import Precision
from runtimes.artifact.files import atomic_write

if TYPE_CHECKING:
    import onnx_ir as ir


DESCRIPTION = "edgewright"
_WEIGHTS = {
    Precision.INT8_WEIGHTS: Weights.STORED,
    Precision.INT4_WEIGHTS: Weights.STORED,
    Precision.SPARSE_INT8: Weights.STORED,
    Precision.INT8_DYNAMIC: Weights.HYBRID,
}
LISTED_TRANSPOSES = 6


@dataclass(slots=True)
class _Lowered:
    context: LoweringContext
    inputs: list[Port]
    outputs: list[Port]
    refusals: list[Refusal]


class TFLiteExporter:
    """Writes .tflite files directly from the hub; TensorFlow is not involved."""

    format = "tflite"
    suffix = ".tflite"

    def check(self, model: ir.Model, options: ExportOptions) -> list[Refusal]:
        """Everything that cannot be expressed. Lowers the whole model in memory, so what passes here can be written."""
        return lower(model, options).refusals

    def export(self, model: ir.Model, destination: Path, options: ExportOptions) -> ExportResult:
        """Write ``destination``. Raises UnsupportedModel with all refusals, StorageError."""
        lowered = lower(model if options.rebatch is None else options.rebatch.twins(model)[0], options)
        if lowered.refusals:
            raise UnsupportedModel(lowered.refusals)
        laid = relayout(lowered.context.writer, lowered.inputs, lowered.outputs)
        notes = lowered.context.notes
        del lowered  # with its copies of the constants
        if options.rebatch is not None:
            _free(laid, options.rebatch.twins(model)[1], options)
        content = laid.writer.finish(laid.inputs, laid.outputs, description=DESCRIPTION, metadata=options.metadata)
        with atomic_write(destination) as file:
            file.write(content)
        return ExportResult(destination, (*_layout_notes(laid), *notes))


EXPORTER = TFLiteExporter()


def _layout_notes(laid: Relayout) -> list[str]:
    """How many transposes are left, then the largest with what asks for them."""
    moved = sorted(laid.moved, key=lambda one: -one.elements)
    found = [f"{len(moved)} transpose(s) left"]
    found += [f"transpose of {one.why}" for one in moved[:LISTED_TRANSPOSES]]
    if len(moved) > LISTED_TRANSPOSES:
        rest = sum(one.elements for one in moved[LISTED_TRANSPOSES:])
        found.append(f"transposes of {rest} elements in {len(moved) - LISTED_TRANSPOSES} smaller ones")
    if not laid.proven:
        found.append(
            "the assignment of layouts is not proven to be the cheapest: too many operators depend on each other"
        )
    return found


def lower(model: ir.Model, options: ExportOptions) -> _Lowered:
    """The model in memory, as each operator alone would have it: axis orders are not assigned yet. With refusals, incomplete."""
    free = options.rebatch is not None  # then subgraphs, whose shapes are fixed, serve nobody
    return settle(model, lambda attempt: _lower(attempt if free else skip_unneeded(attempt), options))


def _free(laid: Relayout, twin: ir.Model, options: ExportOptions) -> None:
    """Give ``laid`` the form for every batch size; ``twin`` is the model at another size. Raises UnsupportedModel."""
    other = lower(twin, options)
    refusals = list(other.refusals)
    if not refusals:
        refusals = free_batch(laid.writer, relayout(other.context.writer, other.inputs, other.outputs).writer)
    if refusals:
        raise UnsupportedModel(refusals)


def _lower(model: ir.Model, options: ExportOptions) -> _Lowered:
    importlib.import_module("compiler.exporters.tflite.ops")  # fills TFLITE
    if not options.precision.needs_data:
        options = replace(options, integer_io=None)
    weights = _WEIGHTS.get(options.precision, Weights.FOLDED)
    half, free = options.precision is Precision.FP16, options.rebatch is not None
    context = LoweringContext(GraphWriter(), float16=half, weights=weights, free_batch=free)
    lowered = _Lowered(context, [], [], [])
    graph = model.graph
    for name, value in graph.initializers.items():
        if value.const_value is None:
            lowered.refusals.append(_refusal(name, "initializer", "its content is missing", "Embed the weights."))
        else:
            context.set_constant(value, value.const_value.numpy())
    for value in graph.inputs:
        try:
            context.begin(name_of(value), "QuantizeLinear")
            lowered.inputs.append(input_port(context, value, options))
        except Unsupported as error:
            lowered.refusals.append(_refusal(name_of(value), "input", error.reason, error.remedy))
    lowered.refusals += lower_nodes(context, graph)
    if not lowered.refusals:
        taken = {tensor.index for _, tensor in lowered.inputs}
        lowered.outputs = output_ports(context, graph, taken, options)
        floating = islands(context, graph, lowered.inputs, lowered.outputs)
        strict = options.integer_io is not None and not options.float_islands
        lowered.refusals = _size_refusals(context) + (floating if strict else [])
        if options.precision.needs_data:
            _note_islands(context, floating)
    return lowered


def _note_islands(context: LoweringContext, floating: list[Refusal]) -> None:
    nodes = [f"{r.op_type} {r.node}" for r in floating if r.op_type not in ("input", "output")]
    if nodes:
        more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
        context.note(f"{len(nodes)} node(s) compute in float32: {', '.join(nodes[:8])}{more}")


def _size_refusals(context: LoweringContext) -> list[Refusal]:
    size = context.writer.constant_bytes
    if size < MAX_FILE_BYTES - (64 << 20):
        return []
    return [_refusal("", "model", f"its constants take {size} bytes; a flatbuffer ends at 2 GiB", "Use fp16 or int8.")]


def _refusal(node: str, op_type: str, reason: str, remedy: str) -> Refusal:
    return Refusal(node, op_type, reason, "tflite", remedy)
