"""What float16 may do to a program: the same program in float32, every float16 result off by one largest rounding at random.

Rounding to float16 is y (1 + d) with |d| <= 2**-11, and y + e with |e| <= 2**-25 below the normal numbers (Higham, Accuracy and
Stability of Numerical Algorithms, 2.4). Here each element of each result moves by max(|y| u, 2**-14 u) with a random sign instead,
so that a few runs show how far all roundings together take the answers. What moves elements without computing any rounds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtimes.coreml_reference.program import Body, Operation, Output, Program, Value
from runtimes.coreml_reference.types import DTYPES
from runtimes.session import Array

UNIT = 2.0**-11  # half the distance from 1 to the next float16 (IEEE 754 binary16)
SMALLEST_NORMAL = 2.0**-14
# Operations whose results are among their operands, or exact where their operands are.
EXACT = frozenset(
    {
        *("abs", "argsort", "band_part", "clip", "concat", "cond", "crop", "depth_to_space", "expand_dims", "fill"),
        *("flatten2d", "gather", "gather_along_axis", "gather_nd", "identity", "max_pool", "maximum", "minimum", "pad"),
        *("non_zero", "pixel_shuffle", "pixel_unshuffle", "reduce_max", "reduce_min", "relu", "relu6", "reshape"),
        *("reshape_like", "resize_nearest_neighbor", "reverse", "reverse_sequence", "scatter_nd", "select", "sign"),
        *("slice_by_index", "slice_by_size", "slice_update", "sliding_windows", "space_to_batch", "space_to_depth"),
        *("batch_to_space", "split", "squeeze", "stack", "tile", "topk", "transpose", "while_loop"),
        *("upsample_nearest_neighbor", "ceil", "floor", "round"),
    }
)


@dataclass(frozen=True, slots=True)
class Shake:
    """``unit``: how far results move, relative to themselves; 0 is the program without any float16 rounding."""

    seed: int
    unit: float = UNIT


class Shaken:
    """``program`` in float32, and in ``settle`` what happens to each of its results."""

    def __init__(self, program: Program, shake: Shake) -> None:
        self._rng, self._unit = np.random.default_rng(shake.seed), shake.unit
        self._rounded = frozenset(_rounded(program.operations))
        constants = {name: self._constant(value) for name, value in program.constants.items()}
        self.program = replace(program, constants=constants, operations=_wide(program.operations))

    def settle(self, name: str, result: Array) -> Array:
        """What the result called ``name`` becomes."""
        return self._moved(result) if name in self._rounded else result

    def _constant(self, value: Value) -> Value:
        """A weight was rounded when it was stored; a single number is what its operation asks for."""
        if not isinstance(value, np.ndarray) or value.dtype != np.float16 or value.size == 1:
            return value
        return self._moved(value.astype(np.float32))

    def _moved(self, array: Array) -> Array:
        if not self._unit or array.dtype.kind != "f":
            return array
        signs = self._rng.integers(0, 2, array.shape, dtype=np.int8) * np.float32(2) - np.float32(1)
        step = np.maximum(np.abs(array), SMALLEST_NORMAL) * np.float32(self._unit)
        return np.asarray(array + signs * step)


def _rounded(operations: tuple[Operation, ...]) -> Iterator[str]:
    for op in operations:
        for body in op.blocks:
            yield from _rounded(body.operations)
        if op.type not in EXACT:
            yield from (output.name for output in op.outputs if _is_half(output))


def _is_half(output: Output) -> bool:
    return output.type is not None and output.type.dtype.name == "FLOAT16"


def _wide(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    return tuple(_widened(op) for op in operations)


def _widened(op: Operation) -> Operation:
    args: dict[str, tuple[Any, ...]] = dict(op.args)
    if op.type in ("cast", "constexpr_cast"):
        key = "dtype" if op.type == "cast" else "output_dtype"
        args[key] = tuple("fp32" if value == "fp16" else value for value in args.get(key, ()))
    outputs = tuple(
        replace(output, type=replace(output.type, dtype=DTYPES["FLOAT32"]))
        if output.type and _is_half(output)
        else output
        for output in op.outputs
    )
    return replace(op, args=args, outputs=outputs, blocks=tuple(_body(body) for body in op.blocks))


def _body(body: Body) -> Body:
    return replace(body, operations=_wide(body.operations))
