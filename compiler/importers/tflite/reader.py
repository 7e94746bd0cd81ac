"""Reads a .tflite file into plain typed values: tensors, operators, names of inputs and outputs.

Source: LiteRT's schema.fbs, version 3, through the generated classes that ai-edge-litert ships.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import ExtraMissing, SourceError
from runtimes.litert_base import SIGNATURE
from runtimes.session import Array

_DTYPES = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "FLOAT64": "float64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True, eq=False)
class Quantization:
    """real = (q - zero_point) * scale, along ``axis`` where there are several scales. float32 and int64, [1] or [channels]."""

    scale: Array
    zero_point: Array
    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class TensorInfo:
    """One tensor: ``dtype`` is numpy's name, or the schema's for types that numpy lacks. ``data`` is a constant's content.

    ``free_batch``: the file leaves the first dimension open and stores 1 for it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    quantization: Quantization | None
    data: Array | None
    is_variable: bool
    free_batch: bool


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator. ``inputs`` are tensor indices, -1 for one left out. ``options`` is the schema's table or None."""

    type: str
    place: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any

    def option(self, name: str, default: Any = 0) -> Any:
        """A field of the options table, which files may leave out where every field has its default."""
        return getattr(self.options, name, default) if self.options is not None else default

    def input(self, position: int) -> int | None:
        """The tensor index at ``position``, None where it is left out."""
        return self.inputs[position] if position < len(self.inputs) and self.inputs[position] >= 0 else None


@dataclass(frozen=True, slots=True)
class Graph:
    """The main subgraph. ``inputs`` and ``outputs``: (name as LiteRT's signature has it, tensor index)."""

    tensors: tuple[TensorInfo, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]


@cache
def schema() -> Any:
    """The generated module. Raises ExtraMissing."""
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ExtraMissing(
            f"Reading .tflite files needs ai-edge-litert: {error}.", remedy="Install edgewright[tflite]."
        ) from error
    return schema_py_generated


@cache
def enum_names(name: str) -> dict[int, str]:
    """The members of the schema's enum ``name``, by number."""
    return {v: k for k, v in vars(getattr(schema(), name)).items() if isinstance(v, int)}


def read_graph(path: Path) -> Graph:
    """Parse ``path``.

    Raises:
        SourceError: the file is damaged.
        ExtraMissing: ai-edge-litert is not installed.
    """
    generated = schema()
    try:
        model = generated.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
        return _graph(model)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror}.", remedy="Check the path and its rights."
        ) from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError, MemoryError) as error:
        raise _damaged(path, error) from error
    except Exception as error:  # struct.error and the flatbuffers package's own, which share no base
        if type(error).__module__.partition(".")[0] not in ("struct", "flatbuffers"):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{path} is no whole .tflite file: {type(error).__name__}: {error}.",
        remedy="Fetch or convert the file again.",
    )


def _graph(model: Any) -> Graph:
    main = model.subgraphs[0]
    tensors = tuple(_tensor(tensor, model.buffers) for tensor in main.tensors)
    codes = [_code(code) for code in model.operatorCodes]
    operators = tuple(
        Operator(codes[o.opcodeIndex], place, _indices(o.inputs), _indices(o.outputs), o.builtinOptions)
        for place, o in enumerate(main.operators)
    )
    used = [i for o in operators for i in (*o.inputs, *o.outputs)] + [*_indices(main.inputs), *_indices(main.outputs)]
    if any(i < -1 or i >= len(tensors) for i in used):
        raise ValueError("an operator names a tensor that does not exist")
    inputs, outputs = _signature(model)
    return Graph(tensors, operators, _ports(main.inputs, inputs, tensors), _ports(main.outputs, outputs, tensors))


def _indices(values: Sequence[int] | None) -> tuple[int, ...]:
    return () if values is None else tuple(int(v) for v in values)


def _code(code: Any) -> str:
    number = max(code.deprecatedBuiltinCode, code.builtinCode)  # the old field is a byte; new operators overflow it
    name = enum_names("BuiltinOperator").get(number, f"builtin {number}")
    return f"CUSTOM {_text(code.customCode)}" if name == "CUSTOM" else name


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _tensor(tensor: Any, buffers: Sequence[Any]) -> TensorInfo:
    name = enum_names("TensorType").get(tensor.type, f"type {tensor.type}")
    dtype, shape = _DTYPES.get(name, name), _indices(tensor.shape)
    buffer = buffers[tensor.buffer]
    data = None
    if buffer.data is not None and len(buffer.data) and name in _DTYPES and tensor.sparsity is None:
        count = math.prod(shape)
        data = np.frombuffer(np.asarray(buffer.data, np.uint8).tobytes(), np.dtype(dtype), count).reshape(shape)
    elif buffer.data is not None and len(buffer.data):
        dtype = "sparse" if tensor.sparsity is not None else dtype
    signature = _indices(tensor.shapeSignature)
    return TensorInfo(
        _text(tensor.name),
        dtype,
        shape,
        _quantization(tensor.quantization),
        data,
        bool(tensor.isVariable),
        signature[:1] == (-1,),
    )


def _quantization(table: Any) -> Quantization | None:
    if table is None or table.scale is None or not len(table.scale):
        return None
    scale = np.asarray(table.scale, np.float32)
    points = np.zeros(len(scale), np.int64) if table.zeroPoint is None else np.asarray(table.zeroPoint, np.int64)
    return Quantization(scale, np.broadcast_to(points, scale.shape), int(table.quantizedDimension))


def _signature(model: Any) -> tuple[dict[int, str], dict[int, str]]:
    """Names by tensor index, as runtimes.litert_base finds them."""
    found = [s for s in model.signatureDefs or () if s.subgraphIndex == 0]
    chosen = next((s for s in found if _text(s.signatureKey) == SIGNATURE), next(iter(found), None))
    if chosen is None:
        return {}, {}
    inputs, outputs = ({int(p.tensorIndex): _text(p.name) for p in side} for side in (chosen.inputs, chosen.outputs))
    return inputs, outputs


def _ports(indices: Sequence[int], names: dict[int, str], tensors: Sequence[TensorInfo]) -> tuple[tuple[str, int], ...]:
    usable = set(names) == {int(i) for i in indices}
    ports = []
    for i in map(int, indices):
        own = tensors[i].name.removesuffix(":0").removeprefix(f"{SIGNATURE}_")
        ports.append((names[i] if usable else own, i))
    return tuple(ports)
