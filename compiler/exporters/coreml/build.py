"""Walks a hub model and builds the MIL program, collecting every refusal on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from compiler.errors import Refusal
from compiler.exporters.base import ExportOptions, Pixels
from compiler.exporters.coreml.attention import SINCE, Attention, find_attentions, lower_attention
from compiler.exporters.coreml.context import (
    Context,
    Unsupported,
    dtype_name,
    is_fixed,
    is_left_out,
    is_used,
    known_shape,
    static_shape,
)
from compiler.exporters.coreml.flexible import Sizes, free_axes
from compiler.exporters.coreml.interface import Classifier, find_classifier, picture_shape, unpack_picture
from compiler.exporters.coreml.lowering import LOWERINGS
from compiler.exporters.coreml.lowering.table import Lowering
from compiler.exporters.coreml.target import Target, Var, find_target, fresh_builder_names, load_coremltools
from compiler.exporters.half_precision import FLOAT16_MAX, HalfPrecision
from compiler.quantization.palettes import read_palettes
from profiles.schema import Precision
from runtimes.session import Array

if TYPE_CHECKING:
    import onnx_ir as ir

T = TypeVar("T")

MAX_RANK = 5  # Core ML's limit for tensors of an ML program
# numpy's names of hub element types, and what Core ML's inputs and outputs can carry for them.
# MIL has no arithmetic on 16 bits: they stay in int32 all the way; multi-arrays have no bfloat16, and MIL no float64.
IO_TYPES = dict.fromkeys(("float32", "float64", "bfloat16"), "fp32") | dict.fromkeys(
    ("int32", "int64", "bool", "int8", "uint8", "int16", "uint16"), "int32"
)
HALF_PORTS_SINCE = 16  # before, float16 travels as float32
_OVERFLOWING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Pow"}
)  # what may leave 16 bits must come back to them


@dataclass(frozen=True, slots=True)
class Built:
    """A program in memory. ``inputs`` and ``outputs`` map MIL names to the model's own; ``dtypes`` to its element types.

    ``pictures``, ``flexible`` and ``defaults`` (the hub's shapes) are by MIL name too; see interface.py.
    """

    program: Any
    target: Target
    inputs: dict[str, str]
    outputs: dict[str, str]
    dtypes: dict[str, str]
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    pictures: Mapping[str, Pixels] = field(default_factory=dict)
    flexible: Mapping[str, Sizes] = field(default_factory=dict)
    defaults: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    classifier: Classifier | None = None


def build(model: ir.Model, options: ExportOptions) -> Built:
    """Lower the whole model. With refusals in the result, the program is not to be written.

    Raises:
        UnknownTarget: the deployment target is not known.
        ExtraMissing: coremltools is not installed.
    """
    target = find_target(options.deployment_target)
    load_coremltools()
    defaults = {v.name or "": _default_shape(v) for v in model.graph.inputs}
    refused: list[Refusal] = []
    try:
        model = free_axes(model, options.interface.flexible)
    except Unsupported as error:
        refused.append(Refusal("flexible", "input", error.reason, "coreml", error.remedy))
    with fresh_builder_names() as mb:
        built = _Build(model, options, target, mb).run(defaults)
        return replace(built, refusals=(*refused, *built.refusals))


def _default_shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else 1 for d in value.shape or ())


class _Build:
    def __init__(self, model: ir.Model, options: ExportOptions, target: Target, mb: Any) -> None:
        self.graph = model.graph
        self.opset = int(model.opset_imports.get("", 0))
        self.half = options.precision is Precision.FP16 or (options.half and options.precision.weights_only)
        self.target = target
        self.ctx = Context(mb, target, read_palettes(model), self._lower_or_raise)
        self.refusals: list[Refusal] = []
        self.precision = HalfPrecision(self._constant, model.graph)
        self.dtypes: dict[str, str] = {}
        self.tainted: set[ir.Value] = set()  # refused, or computed from what was refused
        self.interface = options.interface
        self.attentions = find_attentions(model.graph) if target.version >= SINCE else {}
        self.inside = {node for attention in self.attentions.values() for node in attention.inner}
        self.computes: dict[ir.Node, str] = {}  # of nodes inside an attention
        self.symbols: dict[str, Any] = {}  # of flexible axes, by their names in the hub

    def _constant(self, value: ir.Value) -> Array | None:
        return self.ctx.weight(value).values() if self.ctx.is_constant(value) else None

    def run(self, defaults: Mapping[str, tuple[int, ...]]) -> Built:
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
        classifier = self._classifier(function)
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
            pictures=_by_mil_name(inputs, self.interface.pictures),
            flexible=_by_mil_name(inputs, self.interface.flexible),
            defaults={n: defaults[str(v.name)] for n, v in inputs.items()},
            classifier=classifier,
        )

    # --- inputs

    def _placeholder(self, name: str, value: ir.Value) -> Any:
        from coremltools.converters.mil.mil import types

        try:
            shape, dtype = self._io_type(name, value)
            if not shape:
                raise Unsupported("it has rank 0 and Core ML's inputs have at least one axis", "Give it shape [1].")
            if value.name is not None and value.name in self.interface.pictures:
                if dtype == "int32":
                    raise Unsupported(f"it is {self.dtypes[name]}, pictures become floats", "Leave out images=true.")
                shape, dtype = picture_shape(shape, self.interface.pictures[value.name]), "fp32"
        except Unsupported as error:
            self._refuse(name, "input", error)
            self.tainted.add(value)
            shape, dtype = (1,), "fp32"
        return self.ctx.mb.placeholder(shape=shape, dtype=types.string_to_builtin(dtype), name=name)

    def _io_type(self, name: str, value: ir.Value) -> tuple[tuple[Any, ...], str]:
        dims = zip(_checked_shape(value, bool(self.interface.flexible)), value.shape or (), strict=True)
        shape = tuple(self._symbol(dim) if size is None else size for size, dim in dims)
        dtype = "unknown" if value.dtype is None else str(value.dtype.numpy())
        carried = "fp16" if self.target.version >= HALF_PORTS_SINCE else "fp32"
        carried = carried if dtype == "float16" else IO_TYPES.get(dtype, "")
        if not carried:
            raise Unsupported(f"its type {dtype} cannot be a Core ML input or output", "Cast it to float32 or int32.")
        if carried == "fp32" and dtype != "float32" and name not in self.dtypes:
            self.ctx.notes.append(f"{value.name!r} is {dtype} in the source and float32 in the package")
        self.dtypes[name] = dtype
        return shape, carried

    def _symbol(self, dim: Any) -> Any:
        """MIL's symbol for a flexible axis, one per name in the hub."""
        from coremltools.converters.mil.mil import get_new_symbol

        return self.symbols.setdefault(str(dim.value), get_new_symbol())

    def _bind_input(self, value: ir.Value, var: Var) -> None:
        pixels = self.interface.pictures.get(value.name or "")
        if pixels is not None and value not in self.tainted:
            var = unpack_picture(self.ctx, var, pixels, value.name or "")
        dtype = self.dtypes.get(var.name, "")
        if dtype == "bool" or (dtype in ("int8", "uint8") and self.ctx.has_bytes):
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
                self._refuse(node.name or "", node.op_type, self._in_its_words(error))
        for output in node.outputs:
            self._stand_in(output)

    def _in_its_words(self, error: Exception) -> Unsupported:
        if self.symbols:
            reason = f"it does not lower for flexible sizes: {_first_line(error)}"
            return Unsupported(reason, "Fix the sizes of the inputs, or list them and build one artifact for each.")
        return Unsupported(f"coremltools refuses it: {_first_line(error)}")

    def _lower_or_raise(self, node: ir.Node) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise Unsupported(f"its domain {node.domain!r} is not ONNX's own")
        lowering = LOWERINGS.find(node.op_type, self.opset)
        if lowering is None:
            raise Unsupported("Core ML has no lowering for this operator", "Leave out the format coreml.")
        narrow = ("INT16", "UINT16") if self.ctx.has_bytes else ("INT16", "UINT16", "INT8", "UINT8")
        if node.op_type in _OVERFLOWING and any(str(output.dtype) in narrow for output in node.outputs):
            reason = f"arithmetic on {node.outputs[0].dtype} has no operation for {self.target.name}"
            raise Unsupported(reason, "Cast to int32 before it.")
        needed = [output for output in node.outputs if is_used(output) and not is_left_out(output)]
        for output in needed:
            _checked_shape(output, bool(self.interface.flexible))
        self.ctx.compute = self._compute_type(node)
        if node in self.inside:
            self.computes[node] = self.ctx.compute
            return
        if node in self.attentions:
            lowering = self._attention(self.attentions[node], lowering)
        lowering(self.ctx, node)
        self._check_results(needed)

    def _attention(self, attention: Attention, alone: Lowering) -> Lowering:
        """One operation, if all that it stands for computes in one type; else the nodes as they are, this one ``alone``."""
        compute = self.ctx.compute
        if {self.computes[node] for node in attention.inner} == {compute}:
            return lambda ctx, node: lower_attention(ctx, node, attention)
        for node in attention.inner:
            self.ctx.compute = self.computes[node]
            lowering = LOWERINGS.find(node.op_type, self.opset)
            assert lowering is not None  # found before, when the node was left for later
            lowering(self.ctx, node)
        self.ctx.compute = compute
        return alone

    def _compute_type(self, node: ir.Node) -> str:
        inside_body = node.graph is not self.graph  # of a loop or branch, see lowering/control.py
        return self.precision.compute_type(node) if self.half and not inside_body else "fp32"

    def _check_results(self, needed: Sequence[ir.Value]) -> None:
        """The hub's shape inference and MIL's are independent: they must agree on everything that is used."""
        for output in needed:
            if self.ctx.is_constant(output):
                continue
            var = self.ctx.native(output)
            want, have = known_shape(output), tuple(var.shape)
            # Behind a flexible axis one side may know more than the other.
            if len(want) != len(have) or any(w != h for w, h in zip(want, have, strict=True) if w and is_fixed([h])):
                raise ValueError(f"{output.name!r} is {list(want)} in the hub and {list(have)} in MIL")

    def _stand_in(self, output: ir.Value) -> None:
        """A zero constant of the hub's type and shape for what a refused node would give."""
        self.tainted.add(output)
        try:
            shape = tuple(size or 1 for size in _checked_shape(output, bool(self.interface.flexible)))
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

    def _classifier(self, function: Any) -> Classifier | None:
        shapes = {var.name: tuple(int(d) if is_fixed([d]) else None for d in var.shape) for var in function.outputs}
        try:
            return find_classifier(self.ctx, shapes, self.interface.classes)
        except Unsupported as error:
            self._refuse("classifier", "output", error)
            return None

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


def _checked_shape(value: ir.Value, flexible: bool) -> tuple[int | None, ...]:
    """The shape, None for ``flexible`` axes. Raises Unsupported where Core ML has no such tensor."""
    shape = known_shape(value) if flexible else static_shape(value)
    if len(shape) > MAX_RANK:
        raise Unsupported(f"{value.name!r} has rank {len(shape)}, Core ML's tensors have at most {MAX_RANK}")
    if 0 in shape:
        raise Unsupported(f"{value.name!r} is empty ({list(shape)}), which Core ML does not know")
    return shape


def _make_names_unique(function: Any, keep: set[str]) -> None:
    """Rename variables that share a name: the builder's own names for parameters may meet a name of the model."""
    taken = set(keep)
    done = {id(var) for var in [*function.inputs.values(), *function.outputs]}
    for var in _variables(function):
        if id(var) in done:
            continue
        done.add(id(var))
        base, count = var.name, 0
        while var.name in taken:
            count += 1
            var.name = f"{base}__{count}"
        taken.add(var.name)


def _variables(block: Any) -> Iterator[Any]:
    """What the operations of ``block`` give, and the inputs and variables of the blocks inside them."""
    for operation in block.operations:
        yield from operation.outputs
        for inner in operation.blocks:
            yield from inner.inputs
            yield from _variables(inner)


def _by_mil_name(values: Mapping[str, ir.Value], options: Mapping[str, T]) -> dict[str, T]:
    return {
        mil: options[value.name] for mil, value in values.items() if value.name is not None and value.name in options
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
