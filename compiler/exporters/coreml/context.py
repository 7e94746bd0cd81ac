"""What a lowering sees: hub values as MIL variables or constants, and the compute type of the node at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from compiler.exporters.coreml.compressed import compressed_var
from compiler.exporters.coreml.constants import Array, Weight, to_mil_dtype
from compiler.exporters.coreml.names import Names
from compiler.exporters.coreml.target import Target, Var
from compiler.exporters.coreml.unsupported import Unsupported as Unsupported
from compiler.quantization.palettes import Palette

if TYPE_CHECKING:
    import onnx_ir as ir


class Context:
    """Maps hub values to MIL variables while a program is built.

    A float variable may exist in float32 and in float16. ``compute`` is what the node at hand computes in: operands are
    cast on demand, each at most once.

    Args:
        mb: coremltools' MIL builder.
        target: the deployment target.
        palettes: by initializer, how its values repeat (compiler/quantization/palettes.py).
        lower: emits one node, for operators that hold others; raises what a Lowering raises.
    """

    def __init__(
        self,
        mb: Any,
        target: Target,
        palettes: Mapping[str, Palette] | None = None,
        lower: Callable[[ir.Node], None] = lambda node: None,
    ) -> None:
        self.mb = mb
        self.lower = lower
        self.target = target
        self.names = Names()
        self.compute = "fp32"
        self.notes: list[str] = []
        self.palettes = palettes or {}
        self._vars: dict[ir.Value, dict[str, Var]] = {}
        self._weights: dict[ir.Value, Weight] = {}

    @property
    def float_dtype(self) -> type[np.floating[Any]]:
        return np.float16 if self.compute == "fp16" else np.float32

    @property
    def has_bytes(self) -> bool:
        """Whether MIL's casts and arithmetic know int8 and uint8; before iOS17 they are int32, as 16 bits are."""
        return self.target.version >= 17

    # --- operands

    def var(self, value: ir.Value) -> Var:
        """``value`` as a variable in the compute type (floats), int32, bool, int8 or uint8."""
        if value not in self._vars:
            return self.weight_var(self.weight(value), hint=value.name or "const")
        variants = self._vars[value]
        native = next(iter(variants))
        if native not in ("fp32", "fp16") or self.compute in variants:
            return variants.get(self.compute, variants[native])
        name = self.names.claim(f"{variants[native].name}_to_{self.compute}")
        variants[self.compute] = self.mb.cast(x=variants[native], dtype=self.compute, name=name)
        return variants[self.compute]

    def input(self, node: ir.Node, index: int) -> Var:
        """Operand ``index`` as a variable. Raises Unsupported if it is absent."""
        value = optional_input(node, index)
        if value is None:
            raise Unsupported(f"its input {index} is missing")
        return self.var(value)

    def is_constant(self, value: ir.Value | None) -> bool:
        return value is not None and (value in self._weights or value.const_value is not None)

    def weight(self, value: ir.Value) -> Weight:
        """A constant with its quantization, if it has one. Raises Unsupported if the value is computed at run time."""
        if value in self._weights:
            return self._weights[value]
        if value.const_value is None:
            raise Unsupported(f"its input {value.name!r} is computed at run time and Core ML needs a constant")
        return Weight(np.asarray(value.const_value.numpy()), palette=self.palettes.get(value.name or ""))

    def constant(self, node: ir.Node, index: int) -> Array | None:
        """Operand ``index`` as an array of hub dtype (dequantized), None if the operand is absent.

        Raises Unsupported if it is computed at run time.
        """
        value = optional_input(node, index)
        return None if value is None else self.weight(value).values()

    def ints(self, node: ir.Node, index: int) -> list[int] | None:
        """A constant operand of integers (axes, pads, sizes), None if absent."""
        array = self.constant(node, index)
        return None if array is None else [int(i) for i in array.reshape(-1)]

    # --- making constants

    def array(self, values: Array | Sequence[float]) -> Array:
        """A float array in the compute type, for an operation's parameter."""
        return np.asarray(values, dtype=self.float_dtype)

    def scalar(self, value: float) -> np.floating[Any]:
        """A float number in the compute type."""
        return self.float_dtype(value)

    def weight_var(self, weight: Weight, hint: str) -> Var:
        """``weight`` as a const, or as a constexpr operation that keeps its bytes in the file.

        int8 from iOS16 on; int4 and blocks from iOS18 on, which dequantize_linear makes sure of. Raises Unsupported where the
        target cannot store what repeats as its palette says.
        """
        name = self.names.claim(hint)
        if (compressed := compressed_var(self, weight, name)) is not None:
            return compressed
        narrow = weight.data.dtype in (np.int8, np.uint8, ml_dtypes.int4)
        if weight.scale is None or not (narrow and weight.data.ndim > 0 and self.target.version >= 16):
            return self.mb.const(val=self._mil_array(weight.values()), name=name)
        assert weight.zero_point is not None
        if self.target.version >= 18:
            scale, offset = weight.spread()
            return self.mb.constexpr_blockwise_shift_scale(
                data=_sub_byte(weight.data),
                scale=scale.astype(self.float_dtype),
                offset=_sub_byte(offset) if np.any(offset) else None,
                name=name,
            )
        return self.mb.constexpr_affine_dequantize(
            quantized_data=weight.data,
            zero_point=weight.zero_point,
            scale=weight.scale.astype(self.float_dtype),
            axis=weight.axis or 0,
            name=name,
        )

    def _mil_array(self, values: Array) -> Array:
        if values.dtype in (np.int8, np.uint8) and not self.has_bytes:
            values = values.astype(np.int32)
        try:
            return to_mil_dtype(values, self.float_dtype)
        except OverflowError as error:
            raise Unsupported(str(error), "Replace the constant by a smaller one.") from error

    # --- results

    def native(self, value: ir.Value) -> Var:
        """``value`` in the type it was computed in. KeyError if no lowering has set it: a mistake of ours."""
        return next(iter(self._vars[value].values()))

    def set(self, value: ir.Value, var: Var) -> None:
        """Record what ``value`` became."""
        self._vars[value] = {dtype_name(var): var}

    def set_weight(self, value: ir.Value, weight: Weight) -> None:
        """Record that ``value`` is a (quantized) constant; it is written where it is used."""
        self._weights[value] = weight

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is set inside, casts of outer values included, is forgotten at the end: it belongs to a block of its own."""
        variables, weights = {value: dict(kinds) for value, kinds in self._vars.items()}, dict(self._weights)
        try:
            yield
        finally:
            self._vars, self._weights = variables, weights

    def name(self, node: ir.Node, index: int = 0, suffix: str = "") -> str:
        """A free identifier for output ``index`` of ``node``, or for a step on the way to it (``suffix``)."""
        return self.names.claim(f"{node.outputs[index].name}{suffix}")


def dtype_name(var: Var) -> str:
    """MIL's name of a variable's element type: "fp32", "int32", "bool", ..."""
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(var.dtype))


def is_used(value: ir.Value) -> bool:
    """Whether anything reads the value, or the model returns it."""
    return bool(value.name) and (bool(value.uses()) or value.is_graph_output())


def is_empty(value: ir.Value) -> bool:
    """Whether the value is known to hold no element."""
    return value.shape is not None and any(dim == 0 for dim in value.shape)


def is_left_out(value: ir.Value) -> bool:
    """Whether the value holds nothing and only Concat reads it, where it adds nothing: it needs no variable."""
    readers = [node.op_type for node, _ in value.uses()]
    return is_empty(value) and not value.is_graph_output() and set(readers) <= {"Concat"}


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """The value's shape. Raises Unsupported if a dimension is not a number."""
    if value.shape is None or not all(isinstance(d, int) for d in value.shape):
        raise Unsupported(
            f"the shape of {value.name!r} is not static", "Import the model with fixed input shapes and batch size."
        )
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def known_shape(value: ir.Value) -> tuple[int | None, ...]:
    """The value's shape with None for axes that are flexible. Raises Unsupported if not even the rank is known."""
    if value.shape is None:
        raise Unsupported(f"the rank of {value.name!r} is not known", "Import the model with fixed input shapes.")
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def is_fixed(sizes: Sequence[Any]) -> bool:
    """Whether every size of a variable's shape is a number; the others are symbols of flexible axes."""
    return all(isinstance(size, (int, np.integer)) for size in sizes)


def output_shape(node: ir.Node, index: int = 0) -> tuple[int, ...]:
    return static_shape(node.outputs[index])


def int_attr(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attr(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def string_attr(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def ints_attr(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else [int(i) for i in attribute.as_ints()]


def _sub_byte(codes: Array) -> Array:
    """int4 as coremltools marks it: int8 whose dtype says in its metadata that half of each byte is to be stored."""
    if codes.dtype != ml_dtypes.int4:
        return codes
    from coremltools.converters.mil.mil import types

    return np.asarray(codes.astype(np.int8).astype(types.np_int4_dtype))
