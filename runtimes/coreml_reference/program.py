"""The ML program as typed values: parse the protobuf once, so that nothing behind this file sees a message."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.coreml_reference.blobs import BlobFile
from runtimes.coreml_reference.package import inside
from runtimes.coreml_reference.proto import data_type_name
from runtimes.coreml_reference.types import DTYPES, DType, State, TensorList, TensorType, check_size, decode
from runtimes.errors import ModelLoadError
from runtimes.session import Array

# What an operation's argument can be: a tensor, a string, a tuple of these, a list of tensors, or a state.
Value = Array | str | tuple[Any, ...] | TensorList | State

_REMEDY = "Export the package again; the evaluator reads ML programs of tensors as coremltools writes them."
_MAX_NESTING = 16


@dataclass(frozen=True, slots=True)
class Ref:
    """The name of a value computed earlier."""

    name: str


@dataclass(frozen=True, slots=True)
class Output:
    name: str
    type: TensorType | None  # None for lists


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of the program. ``args`` holds inputs and, for older constexpr operations, attributes."""

    name: str
    type: str
    args: dict[str, tuple[Ref | Value, ...]]
    outputs: tuple[Output, ...]
    blocks: tuple[Body, ...] = ()

    def reads(self) -> Iterable[str]:
        """Names from outside that the operation uses, those inside its blocks included."""
        yield from (arg.name for args in self.args.values() for arg in args if isinstance(arg, Ref))
        for body in self.blocks:
            own = {*body.inputs, *body.constants, *(o.name for op in body.operations for o in op.outputs)}
            inner = [name for op in body.operations for name in op.reads()]
            yield from (name for name in (*inner, *body.outputs) if name not in own)


@dataclass(frozen=True, slots=True)
class Body:
    """A block inside an operation (cond, while_loop): it sees the names outside, and nothing outside sees its own."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, Value]
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """The main function. ``constants`` are the `const` operations, decoded; ``operations`` everything else, in order.

    ``states``: the inputs that are no tensors to feed but buffers kept between runs, zero at first.
    """

    inputs: dict[str, TensorType]
    outputs: tuple[str, ...]
    constants: dict[str, Value]
    operations: tuple[Operation, ...]
    states: dict[str, TensorType] = field(default_factory=dict)


def parse_program(spec: Any, model_folder: Path) -> Program:
    """Read the function ``main`` of ``spec.mlProgram``.

    Raises:
        ModelLoadError: a function or block is missing, a value is malformed or too large, a name is used before it is
            defined; the message names the operation.
    """
    functions = spec.mlProgram.functions
    name = spec.description.defaultFunctionName or "main"
    if name not in functions:
        raise ModelLoadError(f"The program has no function {name!r} (has {sorted(functions)}).", remedy=_REMEDY)
    function = functions[name]
    if function.opset not in function.block_specializations:
        raise ModelLoadError(f"Function {name!r} has no block for its opset {function.opset!r}.", remedy=_REMEDY)
    return _Parser(model_folder).program(function, function.block_specializations[function.opset])


class _Parser:
    """Holds what parsing needs: the open weight files and the place that errors name."""

    def __init__(self, model_folder: Path) -> None:
        self._folder = model_folder
        self._blobs: dict[str, BlobFile] = {}
        self._where = "function inputs"

    def program(self, function: Any, block: Any) -> Program:
        kept = {i.name: self._state_type(i) for i in function.inputs if i.type.WhichOneof("type") == "stateType"}
        inputs = {i.name: self._input_type(i) for i in function.inputs if i.name not in kept}
        constants, operations = self._content(block)
        program = Program(inputs, tuple(block.outputs), constants, operations, kept)
        _check_names(program)
        return program

    def _content(self, block: Any, depth: int = 0) -> tuple[dict[str, Value], tuple[Operation, ...]]:
        """Constants and other operations of a block."""
        if depth > _MAX_NESTING:
            raise self._bad(f"blocks nest deeper than {_MAX_NESTING}")
        constants: dict[str, Value] = {}
        operations: list[Operation] = []
        for message in block.operations:
            outputs = [o.name for o in message.outputs]
            self._where = f"{message.type} {outputs[0] if outputs else '?'!r}"
            if message.type == "const":
                constants[self._single(outputs)] = self.value(message.attributes["val"])
            else:
                operations.append(self._operation(message, depth))
        return constants, tuple(operations)

    def _single(self, outputs: list[str]) -> str:
        if len(outputs) != 1:
            raise self._bad(f"{len(outputs)} outputs, expected 1")
        return outputs[0]

    def _input_type(self, named: Any) -> TensorType:
        if named.type.WhichOneof("type") != "tensorType":
            raise ModelLoadError(
                f"Input {named.name!r} is a {named.type.WhichOneof('type')}; only tensors can be fed.", remedy=_REMEDY
            )
        return self.tensor_type(named.type.tensorType)

    def _state_type(self, named: Any) -> TensorType:
        self._where = f"state {named.name!r}"
        wrapped = named.type.stateType.wrappedType
        if wrapped.WhichOneof("type") != "tensorType":
            raise self._bad(f"it holds a {wrapped.WhichOneof('type')}, only tensors are kept")
        found = self.tensor_type(wrapped.tensorType)
        try:
            check_size(found.static_shape(self._where), np.dtype(found.dtype.numpy).itemsize)
        except ValueError as error:
            raise self._bad(str(error)) from error
        return found

    def _operation(self, message: Any, depth: int) -> Operation:
        args = {key: tuple(self._binding(b) for b in argument.arguments) for key, argument in message.inputs.items()}
        for key, value in message.attributes.items():
            if key != "name" and key not in args:
                args[key] = (self.value(value),)
        outputs = tuple(
            Output(o.name, self.tensor_type(o.type.tensorType) if o.type.WhichOneof("type") == "tensorType" else None)
            for o in message.outputs
        )
        for output in outputs:
            self._check_declared(output)
        name = outputs[0].name if outputs else message.type
        return Operation(name, message.type, args, outputs, tuple(self._body(b, depth + 1) for b in message.blocks))

    def _body(self, block: Any, depth: int) -> Body:
        constants, operations = self._content(block, depth)
        return Body(tuple(i.name for i in block.inputs), tuple(block.outputs), constants, operations)

    def _binding(self, binding: Any) -> Ref | Value:
        if binding.WhichOneof("binding") == "name":
            return Ref(binding.name)
        return self.value(binding.value)

    def _check_declared(self, output: Output) -> None:
        if output.type and output.type.shape and all(d is not None for d in output.type.shape):
            try:
                check_size([d or 0 for d in output.type.shape], np.dtype(output.type.dtype.numpy).itemsize)
            except ValueError as error:
                raise self._bad(str(error)) from error

    def tensor_type(self, message: Any) -> TensorType:
        dtype = self._dtype(message.dataType)
        if message.rank < 0:  # MIL.proto: rank -1 means unknown
            return TensorType(dtype, None)
        dims = tuple(
            int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in message.dimensions
        )
        if any(d.WhichOneof("dimension") == "unknown" and d.unknown.variadic for d in message.dimensions):
            return TensorType(dtype, None)
        return TensorType(dtype, dims)

    def _dtype(self, number: int) -> DType:
        name = data_type_name(number)
        if name == "STRING":
            return DType("STRING", "object", 8)
        if name not in DTYPES:
            raise self._bad(f"element type {name} is not one the evaluator computes with")
        return DTYPES[name]

    def value(self, message: Any, depth: int = 0) -> Value:
        """Decode a MIL ``Value``: immediate or in a weight file; lists and tuples become tuples."""
        if depth > _MAX_NESTING:
            raise self._bad(f"a value nests deeper than {_MAX_NESTING}")
        source = message.WhichOneof("value")
        if source == "blobFileValue":
            return self._blob(message)
        if source != "immediateValue":
            raise self._bad("a value has no content")
        immediate = message.immediateValue
        kind = immediate.WhichOneof("value")
        if kind == "tensor":
            return self._immediate(message.type.tensorType, immediate.tensor)
        if kind in ("list", "tuple"):
            return tuple(self.value(item, depth + 1) for item in getattr(immediate, kind).values)
        raise self._bad(f"a value of kind {kind} is not supported")

    def _immediate(self, type_message: Any, tensor: Any) -> Value:
        kind = tensor.WhichOneof("value")
        declared = self.tensor_type(type_message)
        if kind is None:  # an empty tensor sets no field
            return np.zeros(declared.static_shape(self._where), dtype=declared.dtype.numpy)
        stored = getattr(tensor, kind).values
        if kind == "strings":
            return str(stored[0]) if len(stored) == 1 else tuple(str(s) for s in stored)
        shape = declared.static_shape(self._where)
        try:
            if kind == "bytes":
                return decode(stored, declared.dtype, shape)
            check_size(shape, 8)
            if len(stored) != math.prod(shape):
                raise ValueError(f"{len(stored)} values stored for shape {list(shape)}")
            return np.array(stored, dtype=declared.dtype.numpy).reshape(shape)
        except (ValueError, OverflowError, TypeError) as error:
            raise self._bad(f"its constant is malformed: {error}") from error

    def _blob(self, message: Any) -> Array:
        declared = self.tensor_type(message.type.tensorType)
        file_name = message.blobFileValue.fileName
        if file_name not in self._blobs:
            try:
                path = inside(self._folder, file_name.removeprefix("@model_path/"))
            except ValueError as error:
                raise self._bad(f"weight file {error}") from error
            self._blobs[file_name] = BlobFile(path)
        try:
            return self._blobs[file_name].read(
                int(message.blobFileValue.offset), declared.dtype, declared.static_shape(self._where)
            )
        except ModelLoadError as error:
            raise ModelLoadError(f"{self._where}: {error.message}", remedy=error.remedy) from error

    def _bad(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self._where}: {what}.", remedy=_REMEDY)


def _check_names(program: Program) -> None:
    """Every name is defined once, before its use. Raises ModelLoadError."""
    _check_block(
        program.operations, program.outputs, {*program.inputs, *program.states, *program.constants}, "The program"
    )


def _check_block(operations: Iterable[Operation], outputs: Iterable[str], known: set[str], what: str) -> None:
    for op in operations:
        missing = sorted({arg.name for args in op.args.values() for arg in args if isinstance(arg, Ref)} - known)
        if missing:
            raise ModelLoadError(f"{op.type} {op.name!r} reads {missing}, which nothing defines.", remedy=_REMEDY)
        for body in op.blocks:
            inside = known | set(body.inputs) | set(body.constants)
            _check_block(body.operations, body.outputs, inside, f"A block of {op.type} {op.name!r}")
        known.update(o.name for o in op.outputs)
    missing = sorted(set(outputs) - known)
    if missing:
        raise ModelLoadError(f"{what} returns {missing}, which nothing defines.", remedy=_REMEDY)
