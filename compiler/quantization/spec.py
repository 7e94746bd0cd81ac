"""The quantization spec: every decision of quantization, made once on the hub and lowered to every target with the same numbers.

It is typed, printable, and serialises to canonical JSON without losing a bit: a float32 scale is written as the double that
equals it, which reads back to the same float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError
from runtimes.artifact.canonical import canonical_json
from runtimes.session import Array

SCHEMA: Final = "edgewright.quantization-spec/1"


class Scheme(StrEnum):
    """SYMMETRIC: zero point 0. AFFINE: the zero point lies anywhere in the dtype's range."""

    SYMMETRIC = "symmetric"
    AFFINE = "affine"


class Granularity(StrEnum):
    PER_TENSOR = "per-tensor"
    PER_CHANNEL = "per-channel"
    PER_BLOCK = "per-block"


class Role(StrEnum):
    """What a quantized constant is to its node."""

    WEIGHT = "weight"  # int8 or int4, symmetric, narrow range [-127, 127]
    BIAS = "bias"  # int32, scale = scale_in * scale_weight
    OPERAND = "operand"  # int8 constant of an element-wise operator


class NodePrecision(StrEnum):
    """What a node computes in; with WEIGHTS its weights are integers and it computes in float32."""

    INT8 = "int8"
    INT16X8 = "int16x8"
    WEIGHTS = "weights"
    FLOAT32 = "float32"

    @property
    def integer_activations(self) -> bool:
        return self in (NodePrecision.INT8, NodePrecision.INT16X8)


@dataclass(frozen=True, slots=True, eq=False)
class QParams:
    """real = (q - zero_point) * scale, element-wise along ``axis``.

    Args:
        dtype: name of the integer type: "int4", "int8", "int16" or "int32".
        scale: [channels] float32, or [1] per tensor; positive. With blocks: the tensor's shape, along ``axis`` one per block.
        zero_point: one integer for all channels.
        axis: the channel axis; None per tensor. With blocks: the axis that is cut into blocks.
        narrow: whether the lowest code is unused ([-127, 127] for int8), as LiteRT's specification asks of weights.
        block_size: elements per block, the last one may be short; None without blocks. Source: ONNX DequantizeLinear-21.
    """

    dtype: str
    scale: NDArray[np.float32]
    zero_point: int = 0
    axis: int | None = None
    narrow: bool = False
    block_size: int | None = None

    def __post_init__(self) -> None:
        scale = np.array(self.scale, np.float32)
        scale = scale if self.block_size else scale.reshape(-1)
        scale.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        if not (np.isfinite(scale).all() and (scale > 0).all() and len(scale)):
            raise ValueError(f"scales must be finite and positive, found {scale}")
        if self.axis is None and len(scale) != 1:
            raise ValueError(f"{len(scale)} scales need an axis")
        if not self.qmin <= self.zero_point <= self.qmax:
            raise ValueError(f"zero point {self.zero_point} is outside {self.dtype}")

    @property
    def bits(self) -> int:
        return int(self.dtype.removeprefix("int"))

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(ml_dtypes.int4 if self.dtype == "int4" else self.dtype)

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) + int(self.narrow)

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def scheme(self) -> Scheme:
        return Scheme.SYMMETRIC if self.zero_point == 0 else Scheme.AFFINE

    @property
    def granularity(self) -> Granularity:
        if self.block_size:
            return Granularity.PER_BLOCK
        return Granularity.PER_TENSOR if self.axis is None else Granularity.PER_CHANNEL

    @property
    def low(self) -> float:
        """The lowest value that a per-tensor quantization can express."""
        return float((self.qmin - self.zero_point) * np.float64(self.scale[0]))

    @property
    def high(self) -> float:
        return float((self.qmax - self.zero_point) * np.float64(self.scale[0]))

    def quantize(self, values: Array) -> Array:
        """q = clip(rint(x / scale) + zero_point, qmin, qmax), ties to even, in float32 as ONNX QuantizeLinear does.

        int32 codes (biases) are computed in float64, which holds them exactly.
        """
        wide = np.float64 if self.dtype == "int32" else np.float32
        codes = np.rint(values.astype(wide) / self._aligned(values.shape).astype(wide)) + wide(self.zero_point)
        return np.asarray(np.clip(codes, self.qmin, self.qmax).astype(np.int64).astype(self.numpy_dtype))

    def dequantize(self, codes: Array) -> Array:
        """x = (q - zero_point) * scale, float32."""
        steps = (codes.astype(np.int64) - self.zero_point).astype(np.float32)
        return np.asarray(steps * self._aligned(codes.shape), np.float32)

    def steps(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The scale of every element of a tensor of ``shape``, in a form that broadcasts to it."""
        return self._aligned(shape)

    def _aligned(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The scale, shaped to broadcast against a tensor of ``shape``."""
        if self.axis is None:
            return self.scale.reshape(())
        axis = self.axis % len(shape)
        if self.block_size:
            return np.repeat(self.scale, self.block_size, axis).take(range(shape[axis]), axis)
        return self.scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QParams):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        shape = self.scale.shape
        return (self.dtype, self.scale.tobytes(), shape, self.zero_point, self.axis, self.narrow, self.block_size)

    def to_json(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "scheme": str(self.scheme),
            "granularity": str(self.granularity),
            "scale": self.scale.astype(float).tolist(),
            "zero_point": self.zero_point,
            "axis": self.axis,
            "narrow": self.narrow,
        } | ({"block_size": self.block_size} if self.block_size else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QParams:
        scale = np.array(data["scale"], np.float32)
        return cls(data["dtype"], scale, data["zero_point"], data["axis"], data["narrow"], data.get("block_size"))


@dataclass(frozen=True, slots=True)
class ConstantQuant:
    """A constant input of a node. The same initializer may be quantized differently at two nodes (shared biases)."""

    node: str
    index: int  # which input of the node
    role: Role
    params: QParams


@dataclass(frozen=True, slots=True)
class Conversion:
    """``node`` reads or writes ``value`` with ``params``, while the value itself is held with others: a node on 16 bits between
    values on 8. A value that is read is converted behind its own pair, one that is written before it."""

    node: str
    value: str
    params: QParams


@dataclass(frozen=True, slots=True)
class NodeDecision:
    """Why a node runs as it does. ``fused_into``: the activation whose output carries this node's numbers."""

    op_type: str
    precision: NodePrecision
    reason: str
    fused_into: str | None = None


@dataclass(frozen=True, slots=True)
class QuantizationSpec:
    """All decisions for one model.

    Args:
        activations: per value name that becomes int8.
        constants: constant inputs of int8 nodes.
        nodes: one decision per node of the model.
        notes: events worth a report, such as a channel's scale raised so that its bias fits.
        provenance: what the decisions were made from (observer, dataset digest, options).
        conversions: where a node sees a value otherwise than ``activations`` has it.
    """

    activations: Mapping[str, QParams]
    constants: tuple[ConstantQuant, ...]
    nodes: Mapping[str, NodeDecision]
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    conversions: tuple[Conversion, ...] = ()

    def seen(self, node: str, value: str) -> QParams:
        """The parameters with which ``node`` reads or writes the quantized ``value``. Raises KeyError for float values."""
        found = (c.params for c in self.conversions if c.node == node and c.value == value)
        return next(found, None) or self.activations[value]

    def constant(self, node: str, index: int) -> QParams | None:
        return next((c.params for c in self.constants if c.node == node and c.index == index), None)

    @property
    def float_nodes(self) -> dict[str, NodeDecision]:
        """Nodes left in float, by name."""
        return {name: d for name, d in self.nodes.items() if d.precision is NodePrecision.FLOAT32}

    @property
    def wide_nodes(self) -> dict[str, NodeDecision]:
        """Nodes with 16-bit activations, by name."""
        return {name: d for name, d in self.nodes.items() if d.precision is NodePrecision.INT16X8}

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON with a ``schema`` field."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "activations": {name: params.to_json() for name, params in self.activations.items()},
                "constants": [
                    {"node": c.node, "index": c.index, "role": str(c.role), "params": c.params.to_json()}
                    for c in self.constants
                ],
                "nodes": {
                    name: {
                        "op_type": d.op_type,
                        "precision": str(d.precision),
                        "reason": d.reason,
                        "fused_into": d.fused_into,
                    }
                    for name, d in self.nodes.items()
                },
                "notes": list(self.notes),
                "provenance": dict(self.provenance),
                "conversions": [
                    {"node": c.node, "value": c.value, "params": c.params.to_json()} for c in self.conversions
                ],
            }
        )

    def __str__(self) -> str:
        """One line per node and per activation, for --dry-run."""
        lines = [f"{len(self.nodes) - len(self.float_nodes)} of {len(self.nodes)} nodes quantized"]
        lines += [f"  {d.precision:8} {d.op_type:20} {name}: {d.reason}" for name, d in self.nodes.items()]
        lines += [
            f"  {name}: {p.dtype} scale {p.scale[0]:.6g} zero point {p.zero_point} [{p.low:.4g}, {p.high:.4g}]"
            for name, p in self.activations.items()
        ]
        lines += [
            f"  {c.node} sees {c.value} as {c.params.dtype} scale {c.params.scale[0]:.6g}" for c in self.conversions
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def read_spec(data: bytes) -> QuantizationSpec:
    """Parse what ``to_bytes`` wrote.

    Raises:
        DataError: not JSON, of another schema, or with impossible values.
    """
    try:
        document = json.loads(data)
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema is {document['schema']!r}, expected {SCHEMA!r}")
        return QuantizationSpec(
            {name: QParams.from_json(p) for name, p in document["activations"].items()},
            tuple(
                ConstantQuant(c["node"], c["index"], Role(c["role"]), QParams.from_json(c["params"]))
                for c in document["constants"]
            ),
            {
                name: NodeDecision(d["op_type"], NodePrecision(d["precision"]), d["reason"], d["fused_into"])
                for name, d in document["nodes"].items()
            },
            tuple(document["notes"]),
            document["provenance"],
            tuple(
                Conversion(c["node"], c["value"], QParams.from_json(c["params"]))
                for c in document.get("conversions", ())
            ),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"The quantization spec cannot be read: {error!r}", remedy="Quantize the model again."
        ) from error
