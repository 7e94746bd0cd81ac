"""GraphWriter: tensors, buffers, operators and operator codes of one .tflite file, and the flatbuffer's bytes.

Source: LiteRT's tflite/converter/schema/schema.fbs (schema version 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from compiler.exporters.tflite.tensors import Array, QuantParams, Tensor
from compiler.exporters.tflite.versions import version

SCHEMA_VERSION = 3
IDENTIFIER = b"TFL3"
BUFFER_ALIGNMENT = 16  # force_align of Buffer.data in the schema; kernels read constants in place
MAX_FILE_BYTES = 2**31 - 1  # flatbuffer offsets are signed 32-bit
SIGNATURE = "serving_default"

_TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "int32": "INT32",
    "uint8": "UINT8",
    "int64": "INT64",
    "bool": "BOOL",
    "int16": "INT16",
    "int8": "INT8",
    "int4": "INT4",
    "float64": "FLOAT64",
    "bfloat16": "BFLOAT16",
    "uint4": "UINT4",
    "uint32": "UINT32",
    "uint16": "UINT16",
    "uint64": "UINT64",
}


def writable(dtype: np.dtype[Any]) -> bool:
    return dtype.name in _TYPES


@dataclass(frozen=True, slots=True)
class Operation:
    """One builtin operator: ``code`` is its name in the schema's BuiltinOperator, ``fields`` those of its options table.

    ``origin`` names the hub's node that it was written for.
    """

    code: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Subgraph:
    """A further graph of the file, as the value of an operator's field that asks for a subgraph's index."""

    name: str
    writer: GraphWriter
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class GraphWriter:
    """Collects one subgraph. Indices are given out in the order of calls, so equal calls give equal bytes."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated

        self._fb: Any = schema_py_generated
        self._names: list[str] = []
        self._used: set[str] = set()
        self._tensors: list[Tensor] = []
        self._buffers: list[Array] = []
        self._buffer_of: dict[bytes, int] = {}
        self._constants: dict[tuple[object, ...], Tensor] = {}
        self._codes: dict[tuple[str, int], int] = {}
        # By tensor: its shape at batch 1, and with -1 for the batch.
        self._freed: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.operations: list[Operation] = []
        self.origin = ""  # the hub's node that operators are written for

    @property
    def constant_bytes(self) -> int:
        """Of this graph and, where not yet adopted, of its subgraphs."""
        return sum(buffer.nbytes for buffer in self._buffers) + sum(s.writer.constant_bytes for s in self._children())

    def name(self, tensor: Tensor) -> str:
        return self._names[tensor.index]

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        quant: QuantParams | None = None,
        *,
        variable: bool = False,
    ) -> Tensor:
        """A tensor that an operator fills, or an input."""
        return self._add(name, Tensor(len(self._tensors), tuple(shape), dtype, quant, variable=variable))

    def constant(self, name: str, data: Array, quant: QuantParams | None = None) -> Tensor:
        """A constant. Equal content shares one buffer; equal constants share one tensor.

        ``data`` is kept as it comes, often a view of the hub's weights in another order; it is copied when the file is packed.
        """
        data = np.asarray(data)
        digest = _digest(data)
        key = (digest, data.shape, data.dtype.str, quant)
        if key not in self._constants:
            if digest not in self._buffer_of:
                self._buffers.append(data)
                self._buffer_of[digest] = len(self._buffers)  # buffer 0 is the empty one
            tensor = Tensor(len(self._tensors), data.shape, data.dtype, quant, data)
            self._constants[key] = self._add(name, tensor)
        return self._constants[key]

    def _add(self, name: str, tensor: Tensor) -> Tensor:
        self._tensors.append(tensor)
        self._names.append("")
        self.rename(tensor, name)
        return tensor

    def rename(self, tensor: Tensor, name: str) -> None:
        """Give ``tensor`` the name ``name``, with a number appended if another one has it."""
        self._used.discard(self._names[tensor.index])
        unique, count = name, 0
        while unique in self._used:
            count += 1
            unique = f"{name}/{count}"
        self._used.add(unique)
        self._names[tensor.index] = unique

    def operator(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        options: str | None = None,
        **fields: Any,
    ) -> None:
        """Append builtin operator ``code`` (its name in the schema's BuiltinOperator).

        Args:
            options: the name of its options table, without the "T" of the generated class.
            fields: the table's fields by the generated class's names. ``to`` is for the version rules alone.
        """
        assert hasattr(self._fb.BuiltinOperator, code), code
        self.operations.append(Operation(code, tuple(inputs), tuple(outputs), options, fields, self.origin))

    @property
    def tensors(self) -> list[Tensor]:
        return self._tensors

    def readers(self, index: int) -> Iterator[tuple[int, Operation]]:
        """Input position and operation of each reader of tensor ``index``."""
        for operation in self.operations:
            for place, read in enumerate(operation.inputs):
                if read is not None and read.index == index:
                    yield place, operation

    def free(self, index: int, shape: tuple[int, ...], signature: tuple[int, ...]) -> None:
        """Declare ``shape``, and by -1 in ``signature`` what an interpreter may resize."""
        self._freed[index] = (shape, signature)

    def freed(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """What was declared free: shape and signature."""
        return self._freed.get(index)

    def exchange(self, index: int, data: Array) -> None:
        """Give the constant ``index`` another content."""
        digest = _digest(data)
        if digest not in self._buffer_of:
            self._buffers.append(data)
            self._buffer_of[digest] = len(self._buffers)
        self._tensors[index] = replace(self._tensors[index], shape=data.shape, data=data)

    def floating(self, types: Sequence[np.dtype[Any]]) -> list[str]:
        """The nodes, each once, whose operators read or write a tensor of one of ``types`` and do not just convert it.

        Those of subgraphs included.
        """
        found: dict[str, None] = {}
        for operation in self.operations:
            touched = [tensor for tensor in (*operation.inputs, *operation.outputs) if tensor is not None]
            if operation.code not in ("QUANTIZE", "DEQUANTIZE") and any(tensor.dtype in types for tensor in touched):
                found[operation.origin] = None
        for child in self._children():
            found |= dict.fromkeys(child.writer.floating(types))
        return list(found)

    def finish(
        self,
        inputs: Sequence[tuple[str, Tensor]],
        outputs: Sequence[tuple[str, Tensor]],
        *,
        description: str,
        metadata: Mapping[str, str],
    ) -> memoryview:
        """The file's bytes, in the builder's own memory.

        ``inputs`` and ``outputs`` carry the names of the signature "serving_default".
        """
        import flatbuffers

        fb = self._fb
        model = fb.ModelT()
        main = Subgraph("main", self, tuple(tensor for _, tensor in inputs), tuple(tensor for _, tensor in outputs))
        graphs = self._adopt(main)
        model.version, model.description = SCHEMA_VERSION, description
        model.subgraphs = [self._graph_table(graph, graphs) for graph in graphs]
        model.operatorCodes = [self._code_table(code, number) for code, number in self._codes]
        model.signatureDefs = [self._signature(inputs, outputs)]
        model.metadata = []
        for name, text in sorted(metadata.items()):
            entry = fb.MetadataT()
            entry.name, entry.buffer = name, self._raw_buffer(text.encode("utf-8"))
            model.metadata.append(entry)
        model.buffers = [_Buffer(None), *(_Buffer(data) for data in self._buffers)]
        # Large enough from the start: growing a builder copies everything written so far.
        tensors = [tensor for graph in graphs for tensor in graph.writer._tensors]
        scales = sum(len(tensor.quant.scale) for tensor in tensors if tensor.quant is not None)
        tables = 512 * len(tensors) + 256 * sum(len(graph.writer.operations) for graph in graphs) + 16 * scales
        content = sum(buffer.nbytes for buffer in self._buffers)
        builder = flatbuffers.Builder(content + tables + 65536)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return memoryview(builder.Bytes)[builder.Head() :]

    def _children(self) -> Iterator[Subgraph]:
        for operation in self.operations:
            yield from (value for value in operation.fields.values() if isinstance(value, Subgraph))

    def _adopt(self, main: Subgraph) -> list[Subgraph]:
        """``main`` and all graphs below it, whose constants become buffers of this writer."""
        graphs = [main]
        for graph in graphs:
            graphs += graph.writer._children()
        for graph in graphs[1:]:
            for data in graph.writer._buffers:
                if (digest := _digest(data)) not in self._buffer_of:
                    self._buffers.append(data)
                    self._buffer_of[digest] = len(self._buffers)
        return graphs

    def _graph_table(self, graph: Subgraph, graphs: Sequence[Subgraph]) -> Any:
        table = self._fb.SubGraphT()
        table.name = graph.name
        table.tensors = [self._tensor_table(tensor, graph.writer) for tensor in graph.writer._tensors]
        table.inputs = [tensor.index for tensor in graph.inputs]
        table.outputs = [tensor.index for tensor in graph.outputs]
        table.operators = [self._operator_table(operation, graphs) for operation in graph.writer.operations]
        return table

    def _raw_buffer(self, content: bytes) -> int:
        self._buffers.append(np.frombuffer(content, np.uint8))
        return len(self._buffers)

    def _operator_table(self, operation: Operation, graphs: Sequence[Subgraph]) -> Any:
        number = version(operation.code, operation.inputs, operation.fields)
        operator = self._fb.OperatorT()
        operator.opcodeIndex = self._codes.setdefault((operation.code, number), len(self._codes))
        operator.inputs = [-1 if tensor is None else tensor.index for tensor in operation.inputs]
        operator.outputs = [tensor.index for tensor in operation.outputs]
        if operation.options is not None:
            table = getattr(self._fb, f"{operation.options}T")()
            for key, value in operation.fields.items():
                if key != "to":
                    if not hasattr(table, key):
                        raise ValueError(f"{operation.options} has no field {key!r}")
                    setattr(table, key, graphs.index(value) if isinstance(value, Subgraph) else value)
            operator.builtinOptionsType = int(getattr(self._fb.BuiltinOptions, operation.options))
            operator.builtinOptions = table
        return operator

    def _tensor_table(self, tensor: Tensor, owner: GraphWriter) -> Any:
        table = self._fb.TensorT()
        table.name = owner._names[tensor.index]
        shape, signature = owner._freed.get(tensor.index, (tensor.shape, None))
        table.shape = list(shape)
        if signature is not None:
            table.shapeSignature = list(signature)
        table.type = int(getattr(self._fb.TensorType, _TYPES[tensor.dtype.name]))
        table.hasRank, table.isVariable = True, tensor.variable
        if tensor.data is not None:
            table.buffer = self._buffer_of[_digest(tensor.data)]
        if tensor.quant is not None:
            table.quantization = self._fb.QuantizationParametersT()
            table.quantization.scale = tensor.quant.scale
            table.quantization.zeroPoint = tensor.quant.zero_point
            table.quantization.quantizedDimension = tensor.quant.axis
        return table

    def _code_table(self, code: str, number: int) -> Any:
        table = self._fb.OperatorCodeT()
        table.builtinCode = int(getattr(self._fb.BuiltinOperator, code))
        # Old readers know only the byte field; 127 tells them to look at the new one.
        table.deprecatedBuiltinCode = min(table.builtinCode, 127)
        table.version = number
        return table

    def _signature(self, inputs: Sequence[tuple[str, Tensor]], outputs: Sequence[tuple[str, Tensor]]) -> Any:
        table = self._fb.SignatureDefT()
        table.signatureKey, table.subgraphIndex = SIGNATURE, 0
        table.inputs = [self._entry(name, tensor) for name, tensor in inputs]
        table.outputs = [self._entry(name, tensor) for name, tensor in outputs]
        return table

    def _entry(self, name: str, tensor: Tensor) -> Any:
        table = self._fb.TensorMapT()
        table.name, table.tensorIndex = name, tensor.index
        return table


class _Buffer:
    """Stands for BufferT, whose own Pack aligns to one byte only and goes through a Python list."""

    def __init__(self, data: Array | None) -> None:
        self._data = data

    def Pack(self, builder: Any) -> Any:
        from ai_edge_litert import schema_py_generated as fb

        position = None
        if self._data is not None and self._data.nbytes:
            raw = _raw(self._data)
            builder.StartVector(1, raw.size, BUFFER_ALIGNMENT)
            builder.head = builder.head - raw.size
            # A bytearray's own slices copy what is not a bytearray before they take it.
            with memoryview(builder.Bytes) as content:
                content[builder.head : builder.head + raw.size] = raw.data
            position = builder.EndVector()
        fb.BufferStart(builder)
        if position is not None:
            fb.BufferAddData(builder, position)
        return fb.BufferEnd(builder)


def _digest(data: Array) -> bytes:
    return hashlib.sha256(_raw(data).data).digest()


def _raw(data: Array) -> Array:
    """The buffer's bytes: int4 and uint4 two to a byte, the first in the low half.

    Source: UnpackDenseInt4IntoInt8 in LiteRT's kernels/internal/portable_tensor_utils.h.
    """
    if data.dtype not in (ml_dtypes.int4, ml_dtypes.uint4):
        return data.reshape(-1).view(np.uint8)
    halves = data.reshape(-1).astype(np.int8).view(np.uint8) & 0xF
    padded = np.append(halves, np.zeros(halves.size % 2, np.uint8))
    return np.asarray(padded[0::2] | padded[1::2] << 4)
