"""Walks a hub model and builds the MIL program, collecting every refusal on the way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import Refusal
from compiler.exporters.base import ExportOptions
from compiler.exporters.coreml.context import (
    Context,
    Unsupported,
    dtype_name,
    is_left_out,
    is_used,
    static_shape,
)
from compiler.exporters.coreml.lowering import LOWERINGS
from compiler.exporters.coreml.target import Target, Var, find_target, load_coremltools
from compiler.exporters.half_precision import FLOAT16_MAX, HalfPrecision
from profiles.schema import Precision
from runtimes.session import Array

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_RANK = 5  # Core ML's limit for tensors of an ML program
# numpy's names of hub element types, and what Core ML's inputs and outputs can carry for them.
# MIL has no arithmetic on 16 bits: they stay in int32 all the way.
IO_TYPES = {"float32": "fp32"} | dict.fromkeys(("int32", "int64", "bool", "int8", "uint8", "int16", "uint16"), "int32")
# Of these, the program itself computes in the narrow type, cast at its edge. MIL casts to bytes since iOS17.
NARROW_TYPES = frozenset({"bool", "int8", "uint8"})
_OVERFLOWING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Pow"}
)  # what may leave 16 bits must come back to them


@dataclass(frozen=True, slots=True)
class Built:
    """A program in memory. ``inputs`` and ``outputs`` map MIL names to the model's own; ``dtypes`` to its element types."""

    program: Any
    target: Target
    inputs: dict[str, str]
    outputs: dict[str, str]
    dtypes: dict[str, str]
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]


def build(model: ir.Model, options: ExportOptions) -> Built:
    """Lower the whole model. With refusals in the result, the program is not to be written.

    Raises:
        UnknownTarget: the deployment target is not known.
        ExtraMissing: coremltools is not installed.
    """
    target = find_target(options.deployment_target)
    load_coremltools()
    with _fresh_builder_names() as mb:
        return _Build(model, options, target, mb).run()


@contextmanager
def _fresh_builder_names() -> Iterator[Any]:
    """The MIL builder numbers its names in a process-wide table: an empty one makes every build name things alike."""
    from coremltools.converters.mil.mil import Builder

    before = Builder.name_count
    Builder.name_count = defaultdict(int)
    try:
        yield Builder
    finally:
        Builder.name_count = before


class _Build:
    def __init__(self, model: ir.Model, options: ExportOptions, target: Target, mb: Any) -> None:
        self.graph = model.graph
        self.opset = int(model.opset_imports.get("", 0))
        self.half = options.precision is Precision.FP16
        self.target = target
        self.ctx = Context(mb, target)
        self.refusals: list[Refusal] = []
        self.precision = HalfPrecision(self._constant, model.graph)
        self.dtypes: dict[str, str] = {}
        self.tainted: set[ir.Value] = set()  # refused, or computed from what was refused

    def _constant(self, value: ir.Value) -> Array | None:
        return self.ctx.weight(value).values() if self.ctx.is_constant(value) else None

    def run(self) -> Built:
        from coremltools import target as targets
        from coremltools.converters.mil.mil import Function, Program

        # Inputs and outputs choose their names first, so that they keep them.
        inputs = {self.ctx.names.claim(v.name or ""): v for v in self.graph.inputs}
        outputs = {self.ctx.names.claim(v.name or ""): v for v in self.graph.outputs}
        program = Program()
        placeholders = {name: self._placeholder(name, value) for name, value in inputs.items()}
        with Function(placeholders, opset_version=getattr(targets, self.target.name)) as function:
            for name, value in inputs.items():
                self._bind_input(value, function.inputs[name])
            for node in self.graph:
                self._lower(node)
            function.set_outputs([self._output(name, value) for name, value in outputs.items()])
        program.add_function("main", function)
        if not self.refusals:  # else operations that coremltools refused half-way are still in it
            _make_names_unique(function, {*inputs, *outputs})
        return Built(
            program=program,
            target=self.target,
            inputs={name: value.name or "" for name, value in inputs.items()},
            outputs={name: value.name or "" for name, value in outputs.items()},
            dtypes=self.dtypes,
            notes=self._notes(),
            refusals=tuple(self.refusals),
        )

    # --- inputs

    def _placeholder(self, name: str, value: ir.Value) -> Any:
        from coremltools.converters.mil.mil import types

        try:
            shape, dtype = self._io_type(name, value)
            if not shape:
                raise Unsupported("it has rank 0 and Core ML's inputs have at least one axis", "Give it shape [1].")
        except Unsupported as error:
            self._refuse(name, "input", error)
            self.tainted.add(value)
            shape, dtype = (1,), "fp32"
        return self.ctx.mb.placeholder(shape=shape, dtype=types.string_to_builtin(dtype), name=name)

    def _io_type(self, name: str, value: ir.Value) -> tuple[tuple[int, ...], str]:
        shape = _checked_shape(value)
        dtype = "unknown" if value.dtype is None else str(value.dtype.numpy())
        if dtype not in IO_TYPES or (dtype in ("int8", "uint8") and self.target.version < 17):
            raise Unsupported(f"its type {dtype} cannot be a Core ML input or output", "Cast it to float32 or int32.")
        self.dtypes[name] = dtype
        return shape, IO_TYPES[dtype]

    def _bind_input(self, value: ir.Value, var: Var) -> None:
        dtype = self.dtypes.get(var.name, "")
        if dtype in NARROW_TYPES:
            var = self.ctx.mb.cast(x=var, dtype=dtype, name=self.ctx.names.claim(f"{value.name}_{dtype}"))
        self.ctx.set(value, var)

    # --- nodes

    def _lower(self, node: ir.Node) -> None:
        """Lower one node, or refuse it and put stand-ins for its outputs, so that the nodes behind it are checked too."""
        behind_refused = any(v in self.tainted for v in node.inputs if v is not None)
        try:
            self._lower_or_raise(node)
            return
        except Unsupported as error:
            self._refuse(node.name or "", node.op_type, error)
        except (ValueError, TypeError, IndexError, NotImplementedError) as error:
            # coremltools checks operands with these; what it objects to is the model's, and is said in its words.
            # Behind a refused node it is the stand-in's: the operands are not what they will be.
            if not behind_refused:
                reason = f"coremltools refuses it: {_first_line(error)}"
                self._refuse(node.name or "", node.op_type, Unsupported(reason))
        for output in node.outputs:
            self._stand_in(output)

    def _lower_or_raise(self, node: ir.Node) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise Unsupported(f"its domain {node.domain!r} is not ONNX's own")
        lowering = LOWERINGS.find(node.op_type, self.opset)
        if lowering is None:
            raise Unsupported("Core ML has no lowering for this operator", "Leave out the format coreml.")
        if node.op_type in _OVERFLOWING and any(str(output.dtype) in ("INT16", "UINT16") for output in node.outputs):
            raise Unsupported("arithmetic on 16 bits has no operation")
        needed = [output for output in node.outputs if is_used(output) and not is_left_out(output)]
        for output in needed:
            _checked_shape(output)
        self.ctx.compute = self._compute_type(node)
        lowering(self.ctx, node)
        self._check_results(needed)

    def _compute_type(self, node: ir.Node) -> str:
        return self.precision.compute_type(node) if self.half else "fp32"

    def _check_results(self, needed: Sequence[ir.Value]) -> None:
        """The hub's shape inference and MIL's are independent: they must agree on everything that is used."""
        for output in needed:
            if self.ctx.is_constant(output):
                continue
            var = self.ctx.native(output)
            want, have = static_shape(output), tuple(int(d) for d in var.shape)
            if want != have:
                raise ValueError(f"{output.name!r} is {list(want)} in the hub and {list(have)} in MIL")

    def _stand_in(self, output: ir.Value) -> None:
        """A zero constant of the hub's type and shape for what a refused node would give."""
        self.tainted.add(output)
        try:
            shape = _checked_shape(output)
        except Unsupported:
            shape = (1,)
        dtype = np.dtype(np.float32) if output.dtype is None else output.dtype.numpy()
        kept = np.bool_ if dtype.kind == "b" else np.int32 if dtype.kind in "iu" else np.float32
        name = self.ctx.names.claim(f"{output.name}_refused")
        self.ctx.set(output, self.ctx.mb.const(val=np.zeros(shape, kept), name=name))

    # --- outputs

    def _output(self, name: str, value: ir.Value) -> Var:
        """The variable to return for ``value``, in the type that Core ML can hand out, called ``name``."""
        self.ctx.compute = "fp32"
        try:
            _, dtype = self._io_type(name, value)
        except Unsupported as error:
            if value not in self.tainted:
                self._refuse(name, "output", error)
            dtype = "fp32"
        var = self.ctx.var(value) if self.ctx.is_constant(value) else self.ctx.native(value)
        if dtype_name(var) != dtype:
            return self.ctx.mb.cast(x=var, dtype=dtype, name=name)
        if var.op is None or var.op.op_type.startswith("const") or var.name in self.dtypes:
            # An input, a constant or another output already: a result must be a variable of its own.
            return self.ctx.mb.identity(x=var, name=name)
        var.name = name
        return var

    # --- what to tell

    def _refuse(self, node: str, op_type: str, error: Unsupported) -> None:
        self.refusals.append(Refusal(node, op_type, error.reason, "coreml", error.remedy))

    def _notes(self) -> tuple[str, ...]:
        notes = list(self.ctx.notes)
        if self.precision.kept:
            notes.append(
                f"kept in float32 for a number outside what float16 holds ({FLOAT16_MAX:g} at most), or to rely on one: "
                + ", ".join(self.precision.kept)
            )
        if any(node.op_type == "QuantizeLinear" for node in self.graph):
            notes.append("int8 activations are dequantized to float32, so that all formats round alike")
        return tuple(notes)


def _checked_shape(value: ir.Value) -> tuple[int, ...]:
    shape = static_shape(value)
    if len(shape) > MAX_RANK:
        raise Unsupported(f"{value.name!r} has rank {len(shape)}, Core ML's tensors have at most {MAX_RANK}")
    if 0 in shape:
        raise Unsupported(f"{value.name!r} is empty ({list(shape)}), which Core ML does not know")
    return shape


def _make_names_unique(function: Any, keep: set[str]) -> None:
    """Rename variables that share a name: the builder's own names for parameters may meet a name of the model."""
    taken = set(keep)
    protected = {id(var) for var in [*function.inputs.values(), *function.outputs]}
    for operation in function.operations:
        for var in operation.outputs:
            if id(var) in protected:
                continue
            base, count = var.name, 0
            while var.name in taken:
                count += 1
                var.name = f"{base}__{count}"
            taken.add(var.name)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
