"""LoweringContext: what an operator lowering asks for its inputs and outputs, so that it never thinks about layout or precision.

``read`` gives an input's tensor in the axis order asked for, dequantized unless integers were agreed on; ``produce`` makes an
output's tensor; ``emit`` appends the operator. Refusals are raised with ``Unsupported`` and collected by the exporter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.kernels import takes
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.quantized import QuantizedConstant, activation_quant
from compiler.exporters.tflite.tensors import Array, QuantParams, Tensor, Weights, per_tensor
from compiler.exporters.tflite.writer import GraphWriter, writable

if TYPE_CHECKING:
    import onnx_ir as ir

# Below this a float16 constant with its DEQUANTIZE operator and second tensor takes more bytes than float32.
FLOAT16_MIN_ELEMENTS = 64
# Outputs of a fused activation, by ActivationFunctionType in the schema.
NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3


class Unsupported(Exception):
    """A node cannot be expressed: the reason, and what the user can do."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True, slots=True)
class Held:
    """How a value is stored: its tensor is ``transpose(value, perm)``."""

    tensor: Tensor
    perm: Perm


class LoweringContext:
    """State of one export: which tensor holds each value, what was inserted, and what is to be reported."""

    def __init__(
        self, writer: GraphWriter, *, float16: bool, weights: Weights = Weights.FOLDED, free_batch: bool = False
    ) -> None:
        self.writer = writer
        self.free_batch = free_batch  # whether the file is to take every batch size
        self.notes: list[str] = []
        self.transposes = 0
        self.skipped: set[str] = set()  # names of nodes that another one absorbed
        self._float16 = float16
        self._weights = weights
        self._held: dict[str, Held] = {}
        self._constants: dict[str, Array] = {}
        self._quantized: dict[str, QuantizedConstant] = {}
        self._root: dict[int, Tensor] = {}  # a reshaped tensor -> the tensor whose memory it shows
        self._cache: dict[tuple[object, ...], Tensor] = {}
        self._node = self._op_type = ""

    @property
    def node(self) -> str:
        """The name of the node that is being lowered."""
        return self._node

    # ------------------------------------------------------------------ the driver's side

    def begin(self, node: str, op_type: str = "") -> None:
        self._node, self._op_type = node, op_type
        self.writer.origin = node

    def bind(self, value: ir.Value, tensor: Tensor, perm: Perm) -> None:
        assert layout.permuted(shape_of(value), perm) == tensor.shape, (value.name, tensor.shape, perm)
        self._held[name_of(value)] = Held(tensor, perm)

    def bind_at_most(self, value: ir.Value, tensor: Tensor) -> None:
        """``tensor`` has the largest shape of a graph output whose size the data decides."""
        self._held[name_of(value)] = Held(tensor, layout.identity(len(tensor.shape)))

    def alias(self, value: ir.Value, source: ir.Value, perm: Perm | None = None) -> None:
        """``value`` is ``source`` seen in another axis order (perm), or just the same."""
        name = name_of(source)
        if name in self._held:
            held = self._held[name]
            self.bind(value, held.tensor, held.perm if perm is None else perm)
        elif name in self._quantized and perm is None:
            self._quantized[name_of(value)] = self._quantized[name]
        else:
            constant = self.constant(source)
            assert constant is not None
            self._constants[name_of(value)] = constant if perm is None else np.transpose(constant, perm)

    def set_constant(self, value: ir.Value, data: Array) -> None:
        self._constants[name_of(value)] = data

    def set_quantized(self, value: ir.Value, constant: QuantizedConstant) -> None:
        self._quantized[name_of(value)] = constant

    def is_known(self, value: ir.Value) -> bool:
        name = name_of(value)
        return name in self._held or name in self._constants or name in self._quantized

    def child(self) -> LoweringContext:
        """The context of a subgraph: a writer of its own, nothing known yet."""
        return LoweringContext(GraphWriter(), float16=self._float16, weights=self._weights, free_batch=self.free_batch)

    def inherit(self, outer: LoweringContext, value: ir.Value) -> None:
        """Know the constant ``value`` of the graph around this one."""
        name = name_of(value)
        if name in outer._quantized:
            self._quantized[name] = outer._quantized[name]
        else:
            self._constants[name] = outer._constants[name]

    # ------------------------------------------------------------------ questions about inputs

    def constant(self, value: ir.Value | None) -> Array | None:
        """The value's content in the hub's axis order if it is constant (dequantized if it is quantized)."""
        if value is None:
            return None
        name = name_of(value)
        if name in self._quantized:
            return self._quantized[name].dequantized()
        return self._constants.get(name)

    def is_constant(self, value: ir.Value) -> bool:
        return name_of(value) in self._quantized or name_of(value) in self._constants

    def required_constant(self, value: ir.Value | None, what: str) -> Array:
        """Raises Unsupported if the value is computed at run time."""
        constant = self.constant(value)
        if constant is None:
            raise Unsupported(f"its {what} is computed at run time", f"Make the {what} a constant in the source.")
        return constant

    def quantized_constant(self, value: ir.Value | None) -> QuantizedConstant | None:
        return None if value is None else self._quantized.get(name_of(value))

    def perm(self, value: ir.Value) -> Perm | None:
        """The order in which the value is stored; None for constants, which take any order for free."""
        held = self._held.get(name_of(value))
        return None if held is None else held.perm

    def quant(self, value: ir.Value) -> QuantParams | None:
        """Parameters of the value's tensor, if it is stored as integers that this node's kernel takes; None otherwise.

        The same for a per-tensor constant.
        """
        held = self._held.get(name_of(value))
        if held is not None:
            quant = held.tensor.quant
            return quant if quant is not None and takes(self._op_type, quant.bits) else None
        constant = self._quantized.get(name_of(value))
        if constant is None or not constant.quant.per_tensor or constant.data.dtype != constant.quant.dtype:
            return None
        # The 16-bit kernels check in Prepare that every zero point is 0.
        return constant.quant if constant.quant.bits == 8 or constant.quant.symmetric else None

    def output_quant(self, value: ir.Value) -> QuantParams | None:
        """Parameters that the quantized hub gives ``value``; None unless QuantizeLinear is all that reads it."""
        uses = list(value.uses())
        if value.is_graph_output() or not uses:
            return None
        if any(use.node.op_type != "QuantizeLinear" or use.idx != 0 for use in uses):
            return None
        return activation_quant(self, uses[0].node)

    def agreed(self, inputs: Sequence[ir.Value], output: ir.Value) -> QuantParams | None:
        """Parameters of ``output`` if the operator can run on integers: every input is stored so and the hub quantizes the output,
        all in the same width."""
        widths = {quant.bits if (quant := self.quant(value)) else 0 for value in inputs}
        output_quant = self.output_quant(output)
        return output_quant if output_quant is not None and widths == {output_quant.bits} else None

    # ------------------------------------------------------------------ tensors

    def read(self, value: ir.Value, perm: Perm, *, stored: bool = False) -> Tensor:
        """The value's tensor in order ``perm``: as it is if ``stored``, else in float."""
        name = name_of(value)
        if name in self._quantized and (stored or self._stays_stored(self._quantized[name])):
            constant = self._quantized[name]
            if constant.quant.block:
                return self._read_blocks(name, constant, perm)
            axis = perm.index(constant.quant.axis) if not constant.quant.per_tensor else 0
            quant = replace(constant.quant, axis=axis)
            codes = self.writer.constant(name, np.transpose(constant.data, perm), quant)
            return codes if stored else self._cached("DEQUANTIZE", codes, codes.shape, np.dtype(np.float32))
        constant_data = self.constant(value)
        if constant_data is not None:
            return self.literal(np.transpose(constant_data, perm), name)
        held = self._held[name]
        tensor = self.transpose(held.tensor, layout.relative(held.perm, perm))
        return tensor if stored else self.dequantize(tensor)

    def _stays_stored(self, constant: QuantizedConstant) -> bool:
        if self._weights is Weights.FOLDED or constant.data.dtype == np.int32:
            return False
        block = constant.quant.block
        if block and constant.data.shape[constant.quant.axis] % block:
            self.note(f"a constant is stored as float32: its last block is shorter than {block}")
            return False
        return True

    def _read_blocks(self, name: str, constant: QuantizedConstant, perm: Perm) -> Tensor:
        """Blocks along the last stored axis are rows of a matrix with one scale each, which DEQUANTIZE can hold.

        LiteRT's own blocks (BlockwiseQuantization in the schema) are read by FULLY_CONNECTED and EMBEDDING_LOOKUP alone, and
        the first then rounds its input to int8, which is not what weights in integers promise.
        """
        order = layout.last(perm, constant.quant.axis)
        numbers = (np.asarray(constant.quant.scale), np.asarray(constant.quant.zero_point))
        scale, zero = (np.transpose(v.reshape(constant.block_shape), order).ravel() for v in numbers)
        quant = QuantParams(tuple(float(s) for s in scale), tuple(int(z) for z in zero), 0)
        rows = np.transpose(constant.data, order)
        codes = self.writer.constant(name, rows.reshape(-1, constant.quant.block), quant)
        real = self._cached("DEQUANTIZE", codes, codes.shape, np.dtype(np.float32))
        return self.transpose(self.reshape(real, rows.shape), layout.relative(order, perm))

    def hybrid(self, value: ir.Value, axis: int) -> bool:
        """Whether a kernel that quantizes its float input takes this weight: int8, symmetric, scales along hub axis ``axis``."""
        constant = self._quantized.get(name_of(value))
        if self._weights is not Weights.HYBRID or constant is None or constant.data.dtype != np.int8:
            return False
        fits = constant.quant.per_tensor or (constant.quant.axis == axis and not constant.quant.block)
        return constant.quant.symmetric and fits

    def literal(self, data: Array, name: str = "constant") -> Tensor:
        """A constant tensor; in a float16 file large float32 content is stored as float16 where it fits."""
        if not (self._float16 and data.dtype == np.float32 and data.size >= FLOAT16_MIN_ELEMENTS):
            return self.writer.constant(name, data)
        with np.errstate(over="ignore"):
            half = data.astype(np.float16)
        if np.any(np.isinf(half) & np.isfinite(data)):
            self.note(f"{name} stays float32: a value exceeds float16's 65504")
            return self.writer.constant(name, data)
        stored = self.writer.constant(f"{name}/float16", half)
        return self._cached("DEQUANTIZE", stored, stored.shape, np.dtype(np.float32), name=name)

    def produce(self, value: ir.Value, perm: Perm, quant: QuantParams | None = None) -> Tensor:
        """A new tensor for ``value`` in order ``perm``; of integers if ``quant`` is given."""
        dtype = quant.dtype if quant is not None else dtype_of(value)
        tensor = self.writer.tensor(name_of(value), layout.permuted(shape_of(value), perm), dtype, quant)
        self.bind(value, tensor, perm)
        return tensor

    def temporary(self, shape: Sequence[int], like: Tensor, quant: QuantParams | None = None) -> Tensor:
        """A new tensor between two operators of one node, of the type and parameters of ``like`` unless given."""
        return self.writer.tensor(f"{self._node}/part", shape, like.dtype, quant or like.quant)

    def emit(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        options: str | None = None,
        **fields: Any,
    ) -> None:
        self.writer.operator(code, inputs, outputs, options, **fields)

    def transpose(self, tensor: Tensor, transposition: Perm) -> Tensor:
        if transposition == layout.identity(len(transposition)):
            return tensor
        shape = layout.permuted(tensor.shape, transposition)
        if layout.moves_nothing(tensor.shape, transposition):
            return self.reshape(tensor, shape)
        if ("TRANSPOSE", tensor.index, transposition) not in self._cache:
            self.transposes += 1
        order = self.writer.constant("perm", np.asarray(transposition, np.int32))
        return self._cached("TRANSPOSE", tensor, shape, tensor.dtype, tensor.quant, transposition, order)

    def reshape(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """The same memory under another shape; a reshape of a reshape goes back to the first tensor."""
        shape = tuple(int(size) for size in shape)
        root = self._root.get(tensor.index, tensor)
        if root.shape == shape:
            return root
        if root.data is not None:
            return self.writer.constant("reshaped", root.data.reshape(shape), root.quant)
        sizes = self.writer.constant("shape", np.asarray(shape, np.int32))
        view = self._cached("RESHAPE", root, shape, root.dtype, root.quant, shape, sizes)
        self._root[view.index] = root
        return view

    def dequantize(self, tensor: Tensor) -> Tensor:
        if tensor.quant is None:
            return tensor
        return self._cached("DEQUANTIZE", tensor, tensor.shape, np.dtype(np.float32))

    def quantize(self, tensor: Tensor, quant: QuantParams) -> Tensor:
        """``tensor`` (float32, or integers with other parameters) with parameters ``quant``."""
        if tensor.quant == quant:
            return tensor
        if tensor.quant is not None and tensor.data is None and tensor.dtype == quant.dtype == np.int8:
            return self._requantize(tensor, quant)
        return self._cached("QUANTIZE", tensor, tensor.shape, quant.dtype, quant, (quant,))

    def _requantize(self, tensor: Tensor, quant: QuantParams) -> Tensor:
        """int8 to int8 as a product with 1, which XNNPACK rounds once, in float32 (src/qs8-vmul, fp32).

        Its QUANTIZE has eight fractional bits for the ratio of the scales (qs8-vcvt), a quarter of a step off at the range's ends.
        """
        key = ("MUL", tensor.index, quant)
        if key not in self._cache:
            result = self.writer.tensor(f"{self._node}/requantized", tensor.shape, quant.dtype, quant)
            self.writer.operator("MUL", [tensor, self.integer_one()], [result], "MulOptions")
            self._cache[key] = result
        return self._cache[key]

    def integer_one(self) -> Tensor:
        """The number 1 as an int8 constant."""
        return self.writer.constant("one", np.full((1,), 127, np.int8), per_tensor(1 / 127, 0))

    def _cached(
        self,
        code: str,
        tensor: Tensor,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        quant: QuantParams | None = None,
        key: tuple[object, ...] = (),
        argument: Tensor | None = None,
        name: str = "",
    ) -> Tensor:
        full_key = (code, tensor.index, key)
        if full_key not in self._cache:
            result = self.writer.tensor(name or f"{self._node}/{code.lower()}", shape, dtype, quant)
            self.writer.operator(code, [tensor] if argument is None else [tensor, argument], [result], to=dtype)
            self._cache[full_key] = result
        return self._cache[full_key]

    # ------------------------------------------------------------------ fusion and notes

    def fused_activation(self, value: ir.Value) -> tuple[int, ir.Value]:
        """The activation that alone reads ``value`` and its output, if the kernel can apply it; else NONE and ``value``."""
        node = self.only_reader(value)
        kind = None if node is None else self.activation_kind(node)
        if node is None or kind is None:
            return NONE, value
        self.skipped.add(node.name or "")
        return kind, node.outputs[0]

    def only_reader(self, value: ir.Value) -> ir.Node | None:
        """The node whose first input ``value`` is, if nothing else reads it; not one in a loop's body."""
        uses, producer = list(value.uses()), value.producer()
        if len(uses) != 1 or uses[0].idx != 0 or value.is_graph_output():
            return None
        node = uses[0].node
        return node if producer is None or node.graph is producer.graph else None

    def activation_kind(self, node: ir.Node) -> int | None:
        if node.op_type == "Relu":
            return RELU
        if node.op_type != "Clip":
            return None
        low, high = self.clip_bounds(node)
        return {(0.0, 6.0): RELU6, (-1.0, 1.0): RELU_N1_TO_1, (0.0, np.inf): RELU}.get((low, high))

    def clip_bounds(self, node: ir.Node) -> tuple[float, float]:
        """Constant bounds of a Clip; NaN where a bound is computed at run time."""
        bounds = []
        for position, default in ((1, -np.inf), (2, np.inf)):
            value = node.inputs[position] if position < len(node.inputs) else None
            constant = self.constant(value)
            bounds.append(default if value is None else np.nan if constant is None else float(constant.reshape(())))
        return bounds[0], bounds[1]

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def name_of(value: ir.Value) -> str:
    assert value.name, "hub values have names"
    return value.name


def rank_of(value: ir.Value) -> int:
    """The number of axes. Raises Unsupported if it is unknown."""
    return len(shape_of(value)) if value.shape is None else len(value.shape)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape. Raises Unsupported if a size is unknown."""
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        raise Unsupported(
            f"the shape of {value.name!r} is {value.shape}, not static", "Give the batch size and all input sizes."
        )
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def dtype_of(value: ir.Value) -> np.dtype[Any]:
    """numpy's type of the value. Raises Unsupported for types without a TFLite counterpart."""
    dtype = None if value.dtype is None else value.dtype.numpy()
    if dtype is None or not writable(np.dtype(dtype)):
        raise Unsupported(
            f"{value.name!r} has type {value.dtype}, which TFLite cannot hold", "Cast it to float32 or int32."
        )
    return np.dtype(dtype)
