"""Differences of near equals in float16: what has to be float32 together with them, and where every element counts.

A difference in float32 of operands that float16 has rounded is no better than before: what makes the operands up is computed in
float32 with it. And in front of a pole (a division, the root of a variance) small elements count as much as large ones, so that
energies over the whole tensor do not tell: E[x**2] - E[x]**2 is judged element by element.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import Dataset
from compiler.hub_session import open_hub
from runtimes.session import Array

LEAST_DB = 45.0  # ordinary values keep 72 to 78 dB; 45 leave a half per cent
OPERAND_NOISE = 2.0**-11 / math.sqrt(3)
TAPPED = 8  # differences looked at in one run: their operands are held in memory together
# Elementwise, or moving elements alone: between these and a pole small numbers stay small.
PASSING = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Slice", "Gather", "Cast"}
) | {"Sqrt", "Max", "Clip", "Relu", "Abs", "Add", "Sub"}
# What squares, norms and means are made of.
POWERS = frozenset({"Mul", "Pow", "ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL2", "GlobalAveragePool", "Div"})


def leading_to_poles(model: ir.Model) -> set[ir.Node]:
    """The nodes whose small results a division, a reciprocal or a negative power turns into large ones."""
    todo = [value for node in model.graph for value in _poles(node)]
    found: set[ir.Node] = set()
    while todo:
        value = todo.pop()
        producer = value.producer() if value is not None else None
        if producer is not None and producer not in found:
            found.add(producer)
            todo += producer.inputs if producer.op_type in PASSING else ()
    return found


def _poles(node: ir.Node) -> Sequence[ir.Value | None]:
    if node.op_type == "Reciprocal":
        return node.inputs[:1]
    if node.op_type == "Div":
        return node.inputs[1:2]
    exponent = node.inputs[1] if node.op_type == "Pow" else None
    if exponent is not None and exponent.const_value is not None and (exponent.const_value.numpy() < 0).all():
        return node.inputs[:1]
    return ()


def feeding(node: ir.Node) -> set[ir.Node]:
    """What makes up the operands of a difference: their producers, and behind them what squares and means are made of."""
    found: set[ir.Node] = set()
    todo = list(_producers(node))
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += _producers(one) if one.op_type in PASSING | POWERS else ()
    return found


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer


def lost_shares(model: ir.Model, data: Dataset, nodes: Iterable[ir.Node]) -> dict[str, float]:
    """By name, of the sums and differences among ``nodes``: the share of elements that keep less than LEAST_DB in float16."""
    sums = [node for node in nodes if node.op_type in ("Add", "Sub") and not any(map(_is_constant, node.inputs))]
    shares: dict[str, float] = {}
    for start in range(0, len(sums), TAPPED):
        group = sums[start : start + TAPPED]
        computed = {str(v.name) for node in group for v in (*node.inputs, *node.outputs) if v and v.producer()}
        lost, seen = dict.fromkeys(group, 0), dict.fromkeys(group, 0)
        with open_hub(model, taps=sorted(computed)) as session:
            for feeds in data.batches():
                values = {**feeds, **session.run(feeds)}
                for node in group:
                    x, y, result = (_of(values, value) for value in (*node.inputs, node.outputs[0]))
                    lost[node] += int((OPERAND_NOISE * np.hypot(x, y) > np.abs(result) * 10 ** (-LEAST_DB / 20)).sum())
                    seen[node] += result.size
        shares |= {str(node.name): lost[node] / max(seen[node], 1) for node in group}
    return shares


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or value.const_value is not None


def _of(values: dict[str, Array], value: ir.Value | None) -> Array:
    assert value is not None  # see lost_shares: absent operands are sorted out
    return values[str(value.name)].astype(np.float64)
