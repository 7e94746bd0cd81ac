"""Which nodes can be int8, which activations that makes int8, and which of them must share one scale. Needs no data.

This is the first half of planning; calibration then observes exactly the activations named here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
import onnx_ir as ir

from compiler.errors import DataError
from compiler.quantization.rules import NO_INT16, RULES, WHY_FLOAT
from compiler.quantization.spec import NodeDecision, NodePrecision
from runtimes.session import Array

NOT_FLOAT32 = "does not compute on float32 data"
ALL_CONSTANT = "has constant inputs only; constant folding removes it"
# Reasons under which a node that is not quantized does not compute in float either.
NEVER_FLOAT = (NOT_FLOAT32, ALL_CONSTANT)


@dataclass(slots=True)
class Structure:
    """``decisions`` per node name in graph order; ``activations`` are the names of values that become int8, in graph order."""

    decisions: dict[str, NodeDecision] = field(default_factory=dict)
    activations: list[str] = field(default_factory=list)

    def is_int8(self, node: ir.Node) -> bool:
        """Nodes inside a subgraph (If, Loop) have no decision: they stay in float."""
        decision = self.decisions.get(node.name or "")
        return decision is not None and decision.precision is NodePrecision.INT8


def analyse(
    model: ir.Model,
    keep_float: Collection[str] = (),
    activations: str = "int8",
    reasons: Mapping[str, str] | None = None,
) -> Structure:
    """Decide every node's precision.

    Args:
        model: a float hub.
        keep_float: names of nodes to leave in float.
        activations: "int8" or "int16".
        reasons: further nodes to leave in float, and why.

    Raises:
        DataError: ``keep_float`` names a node that the model does not have.
    """
    names = {name_of(node) for node in model.graph}
    unknown = sorted(set(keep_float) - names)
    if unknown:
        near = [match for name in unknown for match in get_close_matches(name, names, n=1)]
        raise DataError(
            f"keep_float names nodes that the model does not have: {unknown}.",
            remedy=f"Use the hub's node names{f', for instance {near}' if near else ''}.",
        )
    structure = Structure()
    reasons = {**_written_out_norms(model), **(reasons or {})}
    for node in model.graph:
        why = "asked for by keep_float" if name_of(node) in keep_float else reasons.get(name_of(node))
        structure.decisions[name_of(node)] = _decide(node, why, activations)
    _follow_float(model, structure)
    _fuse(model, structure)
    structure.activations = _activations(model, structure)
    return structure


def _written_out_norms(model: ir.Model) -> dict[str, str]:
    """Nodes of layer normalisations that the source spells out: x - mean(x), squared, averaged, rooted, divided by.

    In int8 the difference would be rounded before it is divided by what may be a hundredth of it.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        readers = [use.node for use in node.outputs[0].uses()] if node.op_type == "Sub" else []
        squares = [r for r in readers if r.op_type == "Pow" or (r.op_type == "Mul" and r.inputs[0] is r.inputs[1])]
        scaled = any(r.op_type in ("Div", "Mul") and r not in squares for r in readers)
        mean = node.inputs[1].producer() if readers and node.inputs[1] is not None else None
        averages = [u.node for s in squares for u in s.outputs[0].uses() if u.node.op_type == "ReduceMean"]
        if mean is None or mean.op_type != "ReduceMean" or not averages or not scaled:
            continue
        if mean.inputs[0] is node.inputs[0]:
            parts = [node, mean, *squares, *averages, *(r for r in readers if r not in squares)]
            found |= {name_of(part): "is part of a layer normalisation, which int8 cannot carry" for part in parts}
    return found


def data_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """(index, value) of the node's inputs that carry data, by its rule."""
    wanted = RULES[node.op_type].data_inputs
    return [(i, v) for i, v in enumerate(node.inputs) if v is not None and (wanted is None or i in wanted)]


def constant_of(value: ir.Value | None) -> Array | None:
    """The array of an initializer, else None."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def name_of(node: ir.Node) -> str:
    assert node.name, f"{node.op_type} has no name; a hub names every node"
    return node.name


def value_name(value: ir.Value) -> str:
    assert value.name, "a hub names every value"
    return value.name


def _decide(node: ir.Node, reason: str | None, activations: str) -> NodeDecision:
    reason = reason or _objection(node)
    if reason is None and activations == "int16" and node.op_type in NO_INT16:
        reason = f"no target has an int16 kernel for {node.op_type}"
    if reason is not None:
        return NodeDecision(node.op_type, NodePrecision.FLOAT32, reason)
    return NodeDecision(node.op_type, NodePrecision.INT8, RULES[node.op_type].source)


def _objection(node: ir.Node) -> str | None:
    """Why ``node`` cannot be int8, or None."""
    rule = RULES.get(node.op_type)
    if node.domain or rule is None:
        why = WHY_FLOAT.get(node.op_type)
        return f"no int8 rule for {node.op_type}" + (f": {why}" if why else "")
    values = [v for _, v in data_inputs(node)] + list(node.outputs)
    if any(v.dtype != ir.DataType.FLOAT for v in values):
        return NOT_FLOAT32
    if all(constant_of(v) is not None for _, v in data_inputs(node)):
        return ALL_CONSTANT
    if any((c := constant_of(v)) is not None and not np.isfinite(c).all() for _, v in data_inputs(node)):
        return "one of its constants is infinite or NaN, which no scale can express"
    if len(node.outputs) > 1 and node.op_type not in ("Split",) and any(o.uses() for o in node.outputs[1:]):
        return "its further outputs are used"
    check = _CHECKS.get(node.op_type)
    return check(node) if check else None


def _check_weighted(node: ir.Node) -> str | None:
    weight, bias = constant_of(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None:
        return "its weight is computed at run time"
    if bias is not None and constant_of(bias) is None:
        return "its bias is computed at run time"
    return None


def _check_gemm(node: ir.Node) -> str | None:
    attributes = node.attributes
    for name, wanted in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        found = attributes[name].value if name in attributes else wanted
        if found != wanted:
            return f"{name} is {found}, int8 kernels need {wanted}; fold it into the weight"
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and bias.size not in (1, bias.shape[-1]):
        return f"its C of shape {list(bias.shape)} is no bias per output"
    return _check_weighted(node)


def _check_pad(node: ir.Node) -> str | None:
    fill = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and (fill is None or fill.any()):
        return "pads with something else than zero"
    return None


def _check_resize(node: ir.Node) -> str | None:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    return None if mode in ("nearest", "linear") else f"mode {mode} leaves the range of its input"


def _check_clip(node: ir.Node) -> str | None:
    constant = all(v is None or constant_of(v) is not None for v in node.inputs[1:])
    return None if constant else "its limits are computed at run time"


_CHECKS = {
    "Conv": _check_weighted,
    "ConvTranspose": _check_weighted,
    "Gemm": _check_gemm,
    "Pad": _check_pad,
    "Resize": _check_resize,
    "Clip": _check_clip,
}


def _follow_float(model: ir.Model, structure: Structure) -> None:
    """Leave in float what would only be a quantization between float nodes: data movement, the activation of a float node."""
    changed = True
    while changed:
        changed = False
        for node in model.graph:
            if structure.is_int8(node) and (reason := _better_float(node, structure)):
                structure.decisions[name_of(node)] = NodeDecision(node.op_type, NodePrecision.FLOAT32, reason)
                changed = True


def _better_float(node: ir.Node, structure: Structure) -> str | None:
    producers = [v.producer() for _, v in data_inputs(node) if constant_of(v) is None]
    from_float = all(p is None or not structure.is_int8(p) for p in producers)
    if RULES[node.op_type].moves_data and from_float and ends_the_model(node, structure):
        return "only moves data between float nodes"
    producer = producers[0] if producers else None
    if (
        node.op_type in ("Relu", "Clip")
        and producer is not None
        and not structure.is_int8(producer)
        and (rule := RULES.get(producer.op_type)) is not None
        and rule.fuses_activation
    ):
        return f"is the activation of {producer.name}, which is float"
    return None


def ends_the_model(node: ir.Node, structure: Structure) -> bool:
    """Whether everything behind ``node`` only moves data, or computes in float, as far as the model's outputs."""
    waiting, seen = [node], set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for reader in (use.node for output in one.outputs for use in output.uses()):
            if not structure.is_int8(reader):
                continue
            if not RULES[reader.op_type].moves_data:
                return False
            waiting.append(reader)
    return True


def _fuse(model: ir.Model, structure: Structure) -> None:
    """Mark nodes whose output is read by one Relu or Clip(0, 6) alone: no pair stands between the two."""
    for node in model.graph:
        rule = RULES.get(node.op_type)
        if not structure.is_int8(node) or rule is None or not rule.fuses_activation:
            continue
        follower = _fusable_follower(node)
        if follower is not None and structure.is_int8(follower):
            old = structure.decisions[name_of(node)]
            structure.decisions[name_of(node)] = NodeDecision(
                old.op_type, old.precision, old.reason, fused_into=value_name(follower.outputs[0])
            )


def _fusable_follower(node: ir.Node) -> ir.Node | None:
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0][1] != 0:
        return None
    follower = uses[0][0]
    if follower.op_type == "Relu" or (follower.op_type == "Clip" and _clip_limits(follower) == (0.0, 6.0)):
        return follower
    return None


def _clip_limits(node: ir.Node) -> tuple[float, float]:
    limits = [-np.inf, np.inf]
    for index in (1, 2):
        constant = constant_of(node.inputs[index]) if len(node.inputs) > index else None
        if constant is not None:
            limits[index - 1] = float(constant.reshape(-1)[0])
    return limits[0], limits[1]


def _activations(model: ir.Model, structure: Structure) -> list[str]:
    """Names of the values that become int8: data inputs and outputs of int8 nodes, but not values inside a fusion."""
    inside = {
        value_name(node.outputs[0]) for node in model.graph if structure.decisions[name_of(node)].fused_into is not None
    }
    wanted: dict[str, None] = {}
    for node in model.graph:
        if not structure.is_int8(node):
            continue
        values = [v for _, v in data_inputs(node) if constant_of(v) is None]
        values += [v for v in node.outputs if v.name]
        wanted.update((value_name(v), None) for v in values if value_name(v) not in inside)
    return list(wanted)


def weight_axis(node: ir.Node) -> int | None:
    """The output-channel axis of the constant weight, or None where only one scale can be had.

    Conv [out, in/group, ...]: 0. ConvTranspose [in, out/group, ...]: 1 without groups; with groups one index of axis 1
    stands for several output channels. Gemm: 0 with transB, else 1. MatMul [in, out]: 1; batched weights: none.
    """
    weight = constant_of(node.inputs[1])
    assert weight is not None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        group = node.attributes["group"].as_int() if "group" in node.attributes else 1
        return 1 if group == 1 else None
    if node.op_type == "Gemm":
        return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
    return 1 if weight.ndim == 2 else None
