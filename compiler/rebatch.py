"""The same model at other batch sizes, so that exporters can tell a batch size from a number that happens to be equal.

A shape that the source's exporter or the clean-up wrote down as a constant does not say which of its entries is the batch. The
source does: imported at two other sizes, what depends on the batch is what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compiler.errors import Refusal, UnsupportedModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from runtimes.session import Array

WORKING_BATCH = 2  # the pipeline's own size: at 1 an axis without extent lets the clean-up drop what other sizes need
TWIN_BATCHES = (11, 13)  # no kernel size, rank or axis number, so that equal constants stay equal for the same reason
VERIFIED_BATCHES = (
    WORKING_BATCH,
    1,
    3,
)  # the first is timed; 1 is what devices run, 3 no size that the artifact was made at
REMEDY = "Build with a fixed --batch."


@dataclass(frozen=True, slots=True)
class Rebatch:
    """The cleaned float hub at WORKING_BATCH and at TWIN_BATCHES."""

    working: ir.Model
    others: tuple[ir.Model, ir.Model]

    def twins(self, model: ir.Model) -> tuple[ir.Model, ir.Model]:
        """``model``, which was made from the working hub, at the two other sizes.

        Raises:
            UnsupportedModel: the source is another graph at another size, or a step of the build changed what depends on it.
        """
        return self._twin(model, self.others[0]), self._twin(model, self.others[1])

    def _twin(self, model: ir.Model, other: ir.Model) -> ir.Model:
        from compiler.passes.simplify import InferShapes

        _same_graph(self.working, other)
        twin = model.clone()
        inputs = {value.name: value for value in other.graph.inputs}
        for value in twin.graph.inputs:
            value.shape = inputs[value.name].shape
        before, after = _constants(self.working), _constants(other)
        for name, value in twin.graph.initializers.items():
            if name in before and name in after and not _equal(before[name], after[name]):
                _exchange(value, before[name], after[name])
        return InferShapes()(twin).model


def _same_graph(working: ir.Model, other: ir.Model) -> None:
    here, there = ({str(node.name): node.op_type for node in model.graph} for model in (working, other))
    odd = sorted({name for name, op_type in here.items() if there.get(name) != op_type} | (there.keys() - here.keys()))
    if odd:
        raise UnsupportedModel(
            [_refusal(n, here.get(n, there.get(n, "")), "the graph changes with the batch size") for n in odd]
        )


def _exchange(value: ir.Value, before: Array, after: Array) -> None:
    import onnx_ir as ir

    name = str(value.name)
    assert value.const_value is not None
    if not _equal(value.const_value.numpy(), before):
        raise UnsupportedModel(
            [_refusal(name, "initializer", "it depends on the batch size and was changed by the build")]
        )
    tensor = ir.tensor(np.ascontiguousarray(after), name=name)
    value.const_value, value.shape = tensor, ir.Shape(after.shape)


def _constants(model: ir.Model) -> Mapping[str, Array]:
    values = model.graph.initializers.items()
    return {name: value.const_value.numpy() for name, value in values if value.const_value is not None}


def _equal(left: Array, right: Array) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def _refusal(node: str, op_type: str, reason: str) -> Refusal:
    return Refusal(node, op_type, reason, "dynamic batch", REMEDY)


def freed_entry(first: Array, second: Array) -> Array | None:
    """A shape's entries with -1 for the batch, where exactly one entry differs and none is -1 already; else None."""
    if first.ndim != 1 or first.shape != second.shape or first.dtype.kind != "i" or (first < 0).any():
        return None
    differs = np.flatnonzero(first != second)
    if len(differs) != 1:
        return None
    freed = first.copy()
    freed[differs[0]] = -1
    return freed


def one_row(first: Array, second: Array) -> Array | None:
    """A constant that repeats one row per batch element, as that row, which broadcasts; else None."""
    if first.ndim != second.ndim:
        return None
    axes = [i for i, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b]
    if len(axes) != 1 or (first.shape[axes[0]], second.shape[axes[0]]) != TWIN_BATCHES:
        return None
    rows = [np.take(array, [0], axis=axes[0]) for array in (first, second)]
    repeated = all(
        np.array_equal(np.broadcast_to(row, a.shape), a) for row, a in zip(rows, (first, second), strict=True)
    )
    return rows[0] if repeated and np.array_equal(rows[0], rows[1]) else None


def at_one(first: Sequence[int], second: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """A shape at batch 1 and with -1 where it grows with the batch; None where it does not grow in proportion."""
    sizes, signature = [], []
    for a, b in zip(first, second, strict=True):
        each = a // TWIN_BATCHES[0]
        if a != b and (each * TWIN_BATCHES[0], each * TWIN_BATCHES[1]) != (a, b):
            return None
        sizes.append(a if a == b else each)
        signature.append(a if a == b else -1)
    return tuple(sizes), tuple(signature)
