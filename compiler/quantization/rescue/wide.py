"""16-bit activations where they are worth most: chosen by measured sensitivity and a knapsack against 16-bit multiplications.

A group of values that share a scale is widened at a time, and the noise power that this takes from the worst output measured.
Weights stay int8, so the artifact keeps its size; what is spent is time, in multiply-accumulates on 16-bit activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir

from compiler.quantization.plan import planned_structure, planned_ties
from compiler.quantization.rescue.candidate import Bench, Candidate, judged_on, replanned
from compiler.quantization.rescue.knapsack import Sensitivity, knapsack
from compiler.quantization.structure import constant_of, name_of
from compiler.quantization.wide import objection, widen

# Of the model's multiply-accumulates, tried in turn; nodes between two groups count twice, so the last takes whatever helps.
BUDGETS: Final = (0.02, 0.1, 0.25, 0.5, 2.0)
MOST_GROUPS: Final = 64  # measured one by one, those of least signal to noise first, which bounds the time
SAMPLES: Final = 32
NODE_COST: Final = 64  # multiply-accumulates that a node's conversions count for, so that nothing is free


@dataclass(frozen=True, slots=True)
class Group:
    """Values that share one scale; ``cost`` in multiply-accumulates of the nodes that they make wide."""

    name: str
    values: frozenset[str]
    cost: int


def widen_sensitive(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` with more and more values in 16 bits, one candidate per budget that chooses other ones than before."""
    groups = {group.name: group for group in find_groups(start)[:MOST_GROUPS]}
    measured = measure(start, bench, list(groups.values()))
    bench.sensitivity.extend(measured)
    table = [s for s in measured if s.gain_power > 0]
    total = sum(multiplications(node) + NODE_COST for node in start.reference.graph)
    before: tuple[str, ...] = ()
    for share in BUDGETS:
        chosen = knapsack(table, int(share * total))
        if not chosen or chosen == before:
            continue
        before = chosen
        values = frozenset(start.options.wide).union(*(groups[name].values for name in chosen))
        made = replanned(start, replace(start.options, wide=tuple(sorted(values))))
        spent = sum(
            multiplications(node) + NODE_COST for node in start.reference.graph if name_of(node) in made.spec.wide_nodes
        )
        yield f"{spent / total:.0%} of the multiplications: {', '.join(chosen)}", made


def find_groups(start: Candidate) -> list[Group]:
    """Groups of int8 values that can be wide, in graph order; the model's outputs stay int8."""
    options = start.options
    structure = planned_structure(start.reference, start.calibration, options)
    ties = planned_ties(start.reference, structure, start.calibration, options)
    found: dict[frozenset[str], Group] = {}
    for name in structure.activations:
        values = ties.group(name)
        if values in found or name in options.wide or objection(start.reference, structure, values):
            continue
        nodes = widen(start.reference, structure, ties, [name]).nodes
        work = sum(multiplications(node) + NODE_COST for node in start.reference.graph if name_of(node) in nodes)
        found[values] = Group(name, values, work)
    return list(found.values())


def measure(start: Candidate, bench: Bench, groups: list[Group]) -> list[Sensitivity]:
    """One entry per group; measured on training samples, not on those that judge."""
    few = judged_on(bench.hub, bench.train, bench.train.take(SAMPLES))
    base = few.score(start.quantized().model).sqnr_db
    found = []
    for group in groups:
        wide = tuple(sorted({*start.options.wide, *group.values}))
        sqnr = few.score(replanned(start, replace(start.options, wide=wide)).quantized().model).sqnr_db
        power = 10 ** (-base / 10) - 10 ** (-sqnr / 10)
        found.append(Sensitivity(group.name, "value", sqnr - base, power, group.cost, "int16"))
    return found


def multiplications(node: ir.Node) -> int:
    """Multiply-accumulates of one run; one per element for what has no weight."""
    shape = node.outputs[0].shape
    elements = int(np.prod([d for d in shape if isinstance(d, int)])) if shape is not None else 0
    weight = constant_of(node.inputs[1]) if len(node.inputs) > 1 and node.op_type in _PER_OUTPUT else None
    return elements if weight is None else elements * _PER_OUTPUT[node.op_type](node, weight.shape)


def _gemm_depth(node: ir.Node, shape: tuple[int, ...]) -> int:
    return shape[1] if "transB" in node.attributes and node.attributes["transB"].as_int() else shape[0]


# How many products make one output element, from the weight's shape.
_PER_OUTPUT: Final[Mapping[str, Callable[[ir.Node, tuple[int, ...]], int]]] = {
    "Conv": lambda node, shape: int(np.prod(shape[1:])),
    "ConvTranspose": lambda node, shape: int(np.prod(shape[2:])) * shape[0],
    "Gemm": _gemm_depth,
    "MatMul": lambda node, shape: shape[-2] if len(shape) > 1 else shape[0],
}
