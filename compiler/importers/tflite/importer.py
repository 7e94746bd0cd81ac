"""IMPORTER: the TFLite importer as the registry sees it."""

from __future__ import annotations

from pathlib import Path

import onnx

from compiler.errors import Refusal, SourceError, UnsupportedModel
from compiler.hub import Imported, SourceInfo
from compiler.importers.base import ImportOptions
from compiler.importers.hub_form import to_hub
from compiler.importers.tflite.builder import Builder, Unsupported
from compiler.importers.tflite.ops import READINGS
from compiler.importers.tflite.reader import Graph, Operator, read_graph
from compiler.importers.tflite.settling import settle_graph
from runtimes.artifact.files import sha256_file
from runtimes.errors import ModelLoadError
from runtimes.isolation import open_isolated
from runtimes.session import Session

TIMEOUT_S = 600.0


class TFLiteImporter:
    """Entry of IMPORTERS; see ``Importer``."""

    name = "tflite"

    def recognises(self, source: str) -> bool:
        return source.endswith(".tflite")

    def load(self, source: str, options: ImportOptions) -> Imported:
        """The reference is LiteRT on the file as it is, in a child process: some files kill the interpreter.

        Raises:
            SourceError: missing or damaged file, or shapes that it cannot take.
            UnsupportedModel: operators without an ONNX form here, all listed.
            ExtraMissing, RuntimeMissing: ai-edge-litert is not installed.
        """
        path = Path(source)
        if not path.is_file():
            raise SourceError(f"{path} is not a file.", remedy="Check the path of the model.")
        reference = _reference(path)
        try:
            graph = read_graph(path)
            graph = settle_graph(path, graph, _input_shapes(graph, options))
            model = to_hub(to_onnx(graph), options)
        except BaseException:
            reference.close()
            raise
        return Imported(model, reference, SourceInfo(self.name, source, sha256_file(path)))


def _reference(path: Path) -> Session:
    try:
        return open_isolated(path, runtime="litert", timeout_s=TIMEOUT_S)
    except ModelLoadError as error:
        raise SourceError(error.message, remedy=error.remedy) from error


def _input_shapes(graph: Graph, options: ImportOptions) -> dict[int, tuple[int, ...]]:
    """The shapes asked for, by tensor index; without any the file's, a free first dimension (or any, for another batch than 1)
    set to the batch."""
    wanted = dict(options.input_shapes or {})
    shapes = {}
    for name, index in graph.inputs:
        info = graph.tensors[index]
        batched = bool(info.shape) and (info.free_batch or options.batch != 1)
        shapes[index] = tuple(wanted.pop(name, (options.batch, *info.shape[1:]) if batched else info.shape))
    if wanted:
        raise SourceError(
            f"Input shapes were given for {sorted(wanted)}, but the model's inputs are {[n for n, _ in graph.inputs]}.",
            remedy="Name the model's own inputs.",
        )
    return shapes


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """The graph as an ONNX model at the hub's opset.

    Raises:
        UnsupportedModel: every operator that has no ONNX form here, with the reason.
    """
    builder = Builder(graph)
    refusals: list[Refusal] = []
    inputs = [builder.feed(name, index) for name, index in graph.inputs]
    for operator in graph.operators:
        try:
            _read(builder, operator)
        except Unsupported as error:
            refusals.append(_refusal(graph, operator, error.reason))
            builder.stand_in(operator)
    if refusals:
        raise UnsupportedModel(refusals)
    return builder.model(inputs, [builder.fetch(name, index) for name, index in graph.outputs])


def _read(builder: Builder, operator: Operator) -> None:
    reading = READINGS.get(operator.type)
    if reading is None:
        raise Unsupported("it has no ONNX form here")
    reading(builder, operator)


def _refusal(graph: Graph, operator: Operator, reason: str) -> Refusal:
    shown = ", ".join(f"{graph.tensors[i].dtype}{list(graph.tensors[i].shape)}" for i in operator.inputs if i >= 0)
    node = graph.tensors[operator.outputs[0]].name if operator.outputs else f"operator {operator.place}"
    return Refusal(node, operator.type, f"{reason} (inputs {shown})", "import", "Give the model it was made from.")


IMPORTER = TFLiteImporter()
