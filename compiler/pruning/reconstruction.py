"""Reconstruct: repair each consumer that lost inputs, so that it answers again what it answered before.

Consumers are taken in topological order, and each is fitted on what the pruned model, repaired so far, really feeds it
(He, Zhang and Sun 2017, Channel Pruning): errors of earlier layers are compensated by later ones instead of adding up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.pruning.activations import sample_count, stream, take
from compiler.pruning.flow import attribute, constant, name_of, operand, shape_of
from compiler.pruning.least_squares import Fit, Matrix, Normal, fit
from compiler.pruning.performing import add_initializer, free_name, replace_array
from compiler.pruning.types import Cut, PrunePlan, Role
from compiler.pruning.unfold import unfold, window_of
from runtimes.session import SampleFeeds

# The normal matrix is columns x columns in float64: 200 MB at this size. Wider consumers stay as they are, with a note.
LARGEST_COLUMNS = 5120
# Rows wanted per column; more of them cost time and change little, because neighbouring positions say nearly the same.
_ROWS_PER_COLUMN = 24
HELD_OUT_EVERY = 4  # every fourth sample judges and never fits


@dataclass(frozen=True, slots=True)
class Repair:
    """What happened to one consumer. Errors are relative to its outputs' energy, on held-out samples."""

    node: str
    error_before: float
    error_after: float
    ridge: float | None
    skipped: str = ""


def split(samples: int) -> tuple[list[int], list[int]]:
    """Positions of samples that fit and that judge. With fewer than HELD_OUT_EVERY, the same ones do both."""
    held = list(range(HELD_OUT_EVERY - 1, samples, HELD_OUT_EVERY))
    if not held:
        return list(range(samples)), list(range(samples))
    return [i for i in range(samples) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1], held


def reconstruct(
    before: ir.Model,
    after: ir.Model,
    plan: PrunePlan,
    feeds: SampleFeeds,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[ir.Model, tuple[Repair, ...]]:
    """Return a copy of ``after`` with its consumers repaired, and what was done to each.

    Args:
        before: the whole model, whose answers are the target. after: the same after ``perform``.
        feeds: calibration samples on axis 0.
        progress: called with the number of consumers finished.

    Raises:
        DataError, InputMismatch: the samples do not fit the model.
    """
    result = ir.from_proto(ir.to_proto(after))
    train, held = (take(feeds, part) for part in split(sample_count(feeds)))
    wanted = {name for group in plan.groups if group.removed for name in group.consumers}
    repairs: list[Repair] = []
    for node in [node for node in result.graph if name_of(node) in wanted]:
        reason = _obstacle(node)
        if reason:
            repairs.append(Repair(name_of(node), float("nan"), float("nan"), None, reason))
        else:
            repairs.append(_repair(before, result, node, plan, train, held))
        if progress is not None:
            progress(len(repairs))
    return result, tuple(repairs)


def _obstacle(node: ir.Node) -> str:
    """Why this consumer cannot be repaired, or nothing."""
    weight = operand(node, 1)
    array = constant(weight)
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"no repair for {node.op_type}"
    if weight is None or array is None or len(weight.uses()) != 1:
        return "its weight serves other nodes too"
    bias = operand(node, 2)
    if bias is not None and len(bias.uses()) != 1:
        return "its bias serves other nodes too"
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return "it scales its sum"
    if bias is not None and (shape_of(bias) or ())[-1:] != (_outputs(node, array),):
        return "its bias is not one entry per output"
    columns = array.size // _outputs(node, array)
    return f"{columns} columns are more than {LARGEST_COLUMNS}" if columns > LARGEST_COLUMNS else ""


def _outputs(node: ir.Node, array: NDArray[np.float32]) -> int:
    return int(array.shape[0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1])


def _repair(
    before: ir.Model, model: ir.Model, node: ir.Node, plan: PrunePlan, train: SampleFeeds, held: SampleFeeds
) -> Repair:
    array = constant(operand(node, 1))
    assert array is not None
    by_rows = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
    flat = (array.reshape(len(array), -1).T if by_rows else array).astype(np.float64)
    start = flat if node.op_type == "MatMul" else np.vstack([flat, _bias(node, flat.shape[1])[None]])
    fitting, judging = (_statistics(before, model, node, plan, part, start) for part in (train, held))
    found = fit(fitting, judging, start)
    if found.ridge is not None:
        _write(model, node, found, array, by_rows)
    return Repair(name_of(node), found.before, found.after, found.ridge)


def _bias(node: ir.Node, outputs: int) -> Matrix:
    array = constant(operand(node, 2))
    return np.zeros(outputs) if array is None else array.astype(np.float64).reshape(outputs)


def _write(model: ir.Model, node: ir.Node, found: Fit, array: NDArray[np.float32], by_rows: bool) -> None:
    weight, bias = operand(node, 1), operand(node, 2)
    rows = found.solution if node.op_type == "MatMul" else found.solution[:-1]
    assert weight is not None
    replace_array(weight, (rows.T if by_rows else rows).reshape(array.shape))
    if node.op_type == "MatMul":
        return
    values = found.solution[-1]
    if bias is not None:
        replace_array(bias, values.reshape(shape_of(bias) or ()))
        return
    created = add_initializer(model, free_name(model, f"{name_of(node)}_bias"), values.astype(array.dtype))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, created)


def _statistics(
    before: ir.Model, model: ir.Model, node: ir.Node, plan: PrunePlan, feeds: SampleFeeds, start: Matrix
) -> Normal:
    """Stream the pruned model's inputs of ``node`` against the whole model's outputs of the same node."""
    source, target = node.inputs[0], node.outputs[0]
    assert source is not None
    names = (source.name or "", target.name or "")
    kept = _kept_outputs(plan, node, start.shape[1])
    normal = Normal(*start.shape)
    per_sample = ceil(_ROWS_PER_COLUMN * start.shape[0] / sample_count(feeds))
    has_bias = node.op_type != "MatMul"
    pairs = zip(stream(model, names[:1], feeds), stream(before, names[1:], feeds), strict=True)
    for index, (inputs, outputs) in enumerate(pairs):
        x, y = _rows(node, inputs[names[0]], outputs[names[1]], kept, max(per_sample, 8), index)
        normal.add(np.hstack([x, np.ones((len(x), 1), x.dtype)]) if has_bias else x, y)
    return normal


def _kept_outputs(plan: PrunePlan, node: ir.Node, outputs: int) -> NDArray[np.int64]:
    """Positions of the whole node's outputs that the pruned one still has."""
    weight = operand(node, 1)
    for cut in _cuts(plan):
        if cut.role is Role.PRODUCES and cut.node == name_of(node) and weight and cut.initializer == weight.name:
            return np.delete(np.arange(cut.size), cut.remove)
    return np.arange(outputs)


def _cuts(plan: PrunePlan) -> Iterator[Cut]:
    return (instruction for instruction in plan.instructions if isinstance(instruction, Cut))


def _rows(
    node: ir.Node,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    kept: NDArray[np.int64],
    per_sample: int,
    seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Matching rows of inputs [rows, columns] and targets [rows, outputs], at most ``per_sample`` per sample."""
    if node.op_type != "Conv":
        inputs, targets = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])[:, kept]
        chosen = _choose(len(inputs), per_sample * x.shape[0], seed)
        return inputs[chosen], targets[chosen]
    weight = shape_of(operand(node, 1))
    assert weight is not None
    chosen = _choose(prod(y.shape[2:]), per_sample, seed)
    rows = unfold(x, window_of(node, weight[2:], x.shape[2:]), chosen)
    flat = y.reshape(*y.shape[:2], -1)[:, kept][:, :, chosen]
    return rows, np.moveaxis(flat, 1, 2).reshape(-1, len(kept))


def _choose(total: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """All positions, or a random choice that is the same in every run."""
    if total <= wanted:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, wanted, replace=False))
