"""Mixed precision: some values held in 16 bits, and the nodes around them computed on 16 bits, in a model that is int8 elsewhere.

A wide value keeps 256 times finer steps. Its producer and its readers become 16x8 nodes: int16 in, int8 weights, int16 out; what
else they read is converted up, and what else they write is converted down to int8. TFLite has kernels for that, ONNX computes it
in float between the pairs, and Core ML, which has no 16-bit activations, leaves such values in float16 (docs/adr/0015).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from compiler.errors import DataError
from compiler.quantization.params import activation_params
from compiler.quantization.rules import NO_INT16, RULES, Kind
from compiler.quantization.spec import Conversion, QParams
from compiler.quantization.structure import Structure, constant_of, data_inputs, name_of, value_name
from compiler.quantization.ties import Ties


@dataclass(frozen=True, slots=True)
class Widening:
    """``values`` held in int16, ``nodes`` that compute with them; both by name."""

    values: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()


def widen(model: ir.Model, structure: Structure, ties: Ties, wanted: Collection[str]) -> Widening:
    """The smallest widening that holds ``wanted``: with a value goes whatever shares its scale. Float values are passed over.

    Raises:
        DataError: a name is no value of the model, or a node on the way has no 16-bit kernel.
    """
    known = {value_name(v) for v in model.graph.inputs} | {o.name for node in model.graph for o in node.outputs}
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise DataError(
            f"int16 was asked for values that the model does not have: {unknown}.", remedy="Use the hub's value names."
        )
    values = frozenset().union(*(ties.group(name) for name in wanted if name in structure.activations))
    nodes = _units(model, structure, values)
    refusal = next((n for n in model.graph if name_of(n) in nodes and n.op_type in NO_INT16), None)
    if refusal is not None:
        raise DataError(
            f"{refusal.op_type} {refusal.name} has no 16-bit kernel.", remedy="Keep that node in float, or in int8."
        )
    return Widening(values, nodes)


def objection(model: ir.Model, structure: Structure, group: Collection[str]) -> str | None:
    """Why the values of ``group`` cannot be wide, or None. Outputs stay int8: that is what agents and integer files expect."""
    if any(value_name(output) in group for output in model.graph.outputs):
        return "it is an output of the model"
    nodes = _units(model, structure, frozenset(group))
    narrow = next((n.op_type for n in model.graph if name_of(n) in nodes and n.op_type in NO_INT16), None)
    return f"{narrow} has no 16-bit kernel" if narrow else None


def _units(model: ir.Model, structure: Structure, values: frozenset[str]) -> frozenset[str]:
    """Integer nodes that read or write one of ``values``, each with the activation that is fused into it."""
    found: set[str] = set()
    for node in model.graph:
        if not structure.is_int8(node):
            continue
        touched = {v.name for _, v in data_inputs(node)} | {o.name for o in node.outputs}
        producers = [v.producer() for _, v in data_inputs(node)]
        follows = any(
            p is not None and p.name in found and structure.decisions[name_of(p)].fused_into == node.outputs[0].name
            for p in producers
        )
        if touched & values or structure.decisions[name_of(node)].fused_into in values or follows:
            found.add(name_of(node))
    return frozenset(found)


def conversions(
    model: ir.Model, structure: Structure, activations: Mapping[str, QParams], widening: Widening
) -> tuple[Conversion, ...]:
    """Where wide nodes read or write values that are not wide, in graph order."""
    found: list[Conversion] = []
    for node in model.graph:
        if name_of(node) not in widening.nodes:
            continue
        same = RULES[node.op_type].kind is Kind.SAME_SCALE
        output = value_name(node.outputs[0])
        for name in dict.fromkeys(value_name(v) for _, v in data_inputs(node) if constant_of(v) is None):
            if name in activations and name not in widening.values:
                shared = same and output in widening.values
                params = activations[output] if shared else _up(activations[name])
                found.append(Conversion(name_of(node), name, params))
        for name in (value_name(o) for o in node.outputs if o.name):
            if name in activations and name not in widening.values:
                found.append(Conversion(name_of(node), name, _up(activations[name])))
    return tuple(found)


def _up(params: QParams) -> QParams:
    """int16 parameters for all that int8 ones express."""
    return activation_params(params.low, params.high, "int16")
