"""What an operator family says about axis orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from compiler.exporters.tflite import layout
from compiler.exporters.tflite.layout import Perm
from compiler.exporters.tflite.tensors import Array, QuantParams, Tensor
from compiler.exporters.tflite.writer import Operation

# Costs are elements moved, plus what starting an operator is worth, measured in elements.
TRANSPOSE_OVERHEAD, RESHAPE_COST = 512, 64


@dataclass(frozen=True, slots=True)
class Port:
    """A tensor of an operator that is computed at run time: input or output number ``index``."""

    index: int
    is_output: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """One way to run an operator.

    Attributes:
        inputs: per input, the axis order in which the operator reads it; None for constants and absent inputs.
        outputs: per output, the axis order in which it is written.
        cost: what running it this way costs beside the transposes, in the units of ``transposition_cost``.
    """

    inputs: tuple[Perm | None, ...]
    outputs: tuple[Perm, ...]
    cost: int = 0

    def order(self, port: Port) -> Perm:
        perm = self.outputs[port.index] if port.is_output else self.inputs[port.index]
        assert perm is not None, "ports are computed at run time"
        return perm


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An operator's inputs (constants in their new order) and options for a config; outputs follow from the config."""

    code: str
    inputs: tuple[Tensor | None, ...]
    options: str | None
    fields: Mapping[str, Any]


Constant = Callable[[str, Array, QuantParams | None], Tensor]


class Family(Protocol):
    """A set of operators with one rule."""

    why: str  # why an operator of this family wants the order that it wants, for the report

    def propose(self, operation: Operation, port: Port, perm: Perm) -> Sequence[Config]:
        """The configs in which ``port`` has order ``perm``; none if the operator cannot run so."""
        ...

    def rewrite(
        self, operation: Operation, config: Config, inputs: Sequence[Tensor | None], constant: Constant
    ) -> Rewritten:
        """The operator in ``config``. ``inputs`` are the new graph's tensors, already in the config's orders."""
        ...


def ports(operation: Operation) -> list[Port]:
    """Inputs that are not constant, then outputs."""
    read = [Port(i) for i, tensor in enumerate(operation.inputs) if tensor is not None and tensor.data is None]
    return read + [Port(i, is_output=True) for i in range(len(operation.outputs))]


def tensor_at(operation: Operation, port: Port) -> Tensor:
    tensor = operation.outputs[port.index] if port.is_output else operation.inputs[port.index]
    assert tensor is not None, "ports are computed at run time"
    return tensor


def uniform(operation: Operation, inputs: Callable[[Tensor], Perm], outputs: Callable[[Tensor], Perm]) -> Config:
    """A config from a rule per tensor."""
    read = tuple(None if t is None or t.data is not None else inputs(t) for t in operation.inputs)
    return Config(read, tuple(outputs(t) for t in operation.outputs))


def transposition_cost(shape: Sequence[int], transposition: Perm) -> int:
    """What transposing a tensor of ``shape`` costs; moving axes of size 1 alone is a RESHAPE."""
    if transposition == layout.identity(len(transposition)):
        return 0
    return RESHAPE_COST if layout.moves_nothing(shape, transposition) else TRANSPOSE_OVERHEAD + prod(shape)
