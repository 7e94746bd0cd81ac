"""``@evaluates("conv")``: which function computes which MIL operation, and the arguments it is handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from profiles.registry import Registry
from runtimes.coreml_reference.program import Operation, Value
from runtimes.coreml_reference.types import State, TensorList
from runtimes.session import Array

Real = type[np.float32] | type[np.float64]
Name = str  # inside Call, ``str`` and ``int`` are accessors
Number = int


class Call:
    """The arguments of one operation, by MIL's parameter names.

    A missing required argument, or one of the wrong kind, raises ValueError; the evaluator adds the operation's name.

    Args:
        real: what floats are computed in, float32 or float64.
    """

    def __init__(self, op: Operation, args: dict[str, tuple[Value, ...]], real: Real = np.float32) -> None:
        self.op = op
        self.real = real
        self._args = args

    def has(self, name: str) -> bool:
        return bool(self._args.get(name))

    def __getitem__(self, name: str) -> Array:
        value = self._one(name)
        if not isinstance(value, np.ndarray):
            raise ValueError(f"argument {name!r} is no tensor")
        return value

    def wide(self, name: str) -> Array:
        """The tensor, floats widened to ``real``: arithmetic is done there and rounded once at the end."""
        return widen(self[name], self.real)

    def get(self, name: str) -> Array | None:
        return self.wide(name) if self.has(name) else None

    def many(self, name: str) -> list[Array]:
        """A variadic argument, or a tuple value."""
        values: Sequence[Any] = self._args.get(name, ())
        if len(values) == 1 and isinstance(values[0], tuple):
            values = values[0]
        if not values or not all(isinstance(v, np.ndarray) for v in values):
            raise ValueError(f"argument {name!r} is not a list of tensors")
        return list(values)

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        if not self.has(name) and default is not None:
            return list(default)
        return [int(v) for v in np.atleast_1d(self[name]).ravel()]

    def int(self, name: str, default: int | None = None) -> int:
        return self.ints(name, None if default is None else [default])[0]

    def float(self, name: str, default: float | None = None) -> float:
        if not self.has(name) and default is not None:
            return default
        return float(self[name].ravel()[0])

    def bool(self, name: str, default: bool = False) -> bool:
        return bool(self[name].ravel()[0]) if self.has(name) else default

    def str(self, name: str, default: str | None = None) -> str:
        if not self.has(name) and default is not None:
            return default
        value = self._one(name)
        if not isinstance(value, str):
            raise ValueError(f"argument {name!r} is no string")
        return value

    def tensor_list(self, name: Name) -> TensorList:
        value = self._one(name)
        if not isinstance(value, TensorList):
            raise ValueError(f"argument {name!r} is no list")
        return value

    def state(self, name: Name) -> State:
        value = self._one(name)
        if not isinstance(value, State):
            raise ValueError(f"argument {name!r} is no state")
        return value

    def names(self, name: Name) -> list[Name | Number]:
        """A list of names or of integers."""
        values = self._args.get(name, ())
        items = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
        return [item if isinstance(item, Name) else Number(np.asarray(item).reshape(())) for item in items]

    def _one(self, name: Name) -> Value:
        values = self._args.get(name, ())
        if len(values) != 1:
            raise ValueError(f"argument {name!r} has {len(values)} values, expected 1")
        return values[0]


def widen(array: Array, real: Real = np.float32) -> Array:
    """Floats narrower than ``real`` as ``real``; everything else as it is."""
    narrow = array.dtype.kind == "f" and array.dtype.itemsize < np.dtype(real).itemsize
    return array.astype(real) if narrow else array


Result = Array | TensorList | tuple[Array, ...]
Evaluation = Callable[[Call], Result]

EVALUATIONS: Registry[Evaluation] = Registry(
    "MIL operation", how_to_add="Add a function with @evaluates in runtimes/coreml_reference/ops/."
)


def evaluates(*types: str) -> Callable[[Evaluation], Evaluation]:
    """Register a function for one or more MIL operation types.

    The function may return more precision than the operation's declared type (float32 for float16, int64 for int32):
    the evaluator rounds once.
    """

    def register(function: Evaluation) -> Evaluation:
        for name in types:
            EVALUATIONS.add(name, function)
        return function

    return register
