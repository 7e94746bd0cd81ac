"""Replace what an exporter refuses, and try again."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Collection, Container, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from compiler.decompose.bodies import inline_bodies, typed
from compiler.decompose.builder import Builder, Operand
from compiler.decompose.table import DECOMPOSITIONS, Undecomposable
from compiler.errors import SourceError
from compiler.hub import HUB_IR_VERSION, HUB_OPSET, KEEP_FLOAT32
from compiler.passes import clean_up

if TYPE_CHECKING:
    from compiler.errors import Refusal

log = logging.getLogger(__name__)

MAX_ROUNDS = 6  # an Attention ends in Softmax and MatMul after three


class Attempt(Protocol):
    """What an exporter's dry run returns."""

    @property
    def refusals(self) -> Sequence[Refusal]: ...


A = TypeVar("A", bound=Attempt)


def _no_others(model: ir.Model) -> Sequence[ir.Model]:
    return ()


def settle(
    model: ir.Model,
    attempt: Callable[[ir.Model], A],
    at_other_sizes: Callable[[ir.Model], Sequence[ir.Model]] = _no_others,
) -> A:
    """Lower ``model`` by ``attempt``; as long as it refuses nodes that decompose, replace those and lower again.

    ``at_other_sizes``: the same nodes with other sizes of the inputs, for an artifact that takes those too. Decompositions compute
    with the sizes that a model has: only those that are alike for all sizes are taken.

    ``model`` stays as it is. Returns the last attempt: its refusals are what no decomposition helps, named as in the model.
    """
    result = attempt(model)
    first, copied = result, False
    hopeless: set[str] = set()
    for _ in range(MAX_ROUNDS):
        names = {refusal.node for refusal in result.refusals} - hopeless
        if not names:
            break
        if not copied:
            model, copied = model.clone(), True
        failed = decompose(model, names, at_other_sizes(model))
        if failed == names:
            break
        hopeless |= failed
        result = attempt(model)
    # A refusal inside a decomposed node says nothing to the user; the refusal of the node itself does.
    return first if result.refusals and not _same_nodes(first, result) else result


def _same_nodes(first: Attempt, last: Attempt) -> bool:
    return {r.node for r in last.refusals} <= {r.node for r in first.refusals}


def decompose(model: ir.Model, names: Collection[str], others: Sequence[ir.Model] = ()) -> set[str]:
    """Replace the nodes called ``names`` in place, in bodies and branches too; returns those that could not be.

    ``others``: models with the same nodes, in which the replacement must be the same.
    """
    failed = set(names)
    twins = [{node.name: node for node in other.graph.all_nodes()} for other in others]
    for node in list(model.graph.all_nodes()):
        if node.name not in failed or node.graph is None:
            continue
        replacement = _expanded(node)
        if replacement is not None and all(_alike(replacement, twin.get(node.name)) for twin in twins):
            _splice(_graph_of(node), node, replacement)
            failed.discard(node.name)
            log.debug("decomposed %s %r", node.op_type, node.name)
    return failed


def _graph_of(node: ir.Node) -> ir.Graph:
    graph = node.graph
    assert isinstance(graph, ir.Graph), "a hub has no functions"
    return graph


def _alike(replacement: ir.Model, twin: ir.Node | None) -> bool:
    """Whether the twin's replacement holds the same nodes and constants, whatever the shapes between them."""
    other = None if twin is None else _expanded(twin)
    if other is None:
        return False
    first, second = (ir.to_proto(model).graph for model in (replacement, other))
    parts = [
        [part.SerializeToString(deterministic=True) for part in (*graph.node, *graph.initializer)]
        for graph in (first, second)
    ]
    return parts[0] == parts[1]


def _expanded(node: ir.Node) -> ir.Model | None:
    """``node`` alone as a clean hub model of simpler nodes; None where nothing decomposes it."""
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        operands = [_operand(value) for value in node.inputs]
        results = [_operand(value) for value in node.outputs]
    except Undecomposable:
        return None
    proto = ir.to_proto(node)
    used = [result if result and _is_read(value) else None for result, value in zip(results, node.outputs, strict=True)]
    mini = _by_our_own(proto, operands, used) or _by_function_body(proto, operands, used)
    if mini is None:
        return None
    try:
        return clean_up(ir.from_proto(mini))
    except SourceError as error:  # a body that is wrong for these types; the exporter's refusal is the better message
        log.debug("%s %r does not decompose: %s", node.op_type, node.name, error)
        return None


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _operand(value: ir.Value | None) -> Operand | None:
    if value is None or not value.name:
        return None
    if value.shape is None or value.dtype is None or not all(isinstance(size, int) for size in value.shape):
        raise Undecomposable(f"the shape or type of {value.name!r} is not known")
    constant = value.const_value.numpy() if value.is_initializer() and value.const_value is not None else None
    shape = tuple(int(size) for size in value.shape)  # type: ignore[arg-type]  # checked above
    return Operand(value.name, shape, np.dtype(value.dtype.numpy()), constant)


def _by_our_own(
    proto: onnx.NodeProto, operands: Sequence[Operand | None], results: Sequence[Operand | None]
) -> onnx.ModelProto | None:
    importlib.import_module("compiler.decompose.ops")  # fills DECOMPOSITIONS
    function = DECOMPOSITIONS.get(proto.op_type)
    if function is None:
        return None
    builder = Builder(proto, tuple(operands), tuple(results))
    try:
        function(builder)
    except Undecomposable as error:
        log.debug("%s %r does not decompose: %s", proto.op_type, proto.name, error)
        return None
    return _model(builder.nodes, operands, results, builder.initializers)


def _by_function_body(
    proto: onnx.NodeProto, operands: Sequence[Operand | None], results: Sequence[Operand | None]
) -> onnx.ModelProto | None:
    """The operator's definition as an ONNX function, where the standard has one."""
    try:
        onnx.defs.get_schema(proto.op_type, HUB_OPSET, "")
    except onnx.defs.SchemaError:
        return None
    model, count = inline_bodies(_model([proto], operands, results, ()), lambda node: True, HUB_OPSET)
    if not count or any(node.op_type == proto.op_type for node in model.graph.node):
        return None
    # Bodies write their constants as CastLike(constant, input), which folds once it is a Cast.
    return inline_bodies(typed(model), lambda node: node.op_type == "CastLike", HUB_OPSET)[0]


def _model(
    nodes: Sequence[onnx.NodeProto],
    operands: Sequence[Operand | None],
    results: Sequence[Operand | None],
    initializers: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    known = {operand.name: operand for operand in operands if operand is not None}
    graph = helper.make_graph(
        list(nodes),
        "decomposed",
        [_info(operand) for operand in known.values() if operand.constant is None],
        [_info(result) for result in results if result is not None],
        [
            *(
                onnx.numpy_helper.from_array(np.ascontiguousarray(o.constant).reshape(o.shape), o.name)
                for o in known.values()
                if o.constant is not None
            ),
            *initializers,
        ],
        value_info=[
            _info(operand) for operand in known.values() if operand.constant is not None
        ],  # bodies look types up there
    )
    opsets = [helper.make_opsetid("", HUB_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=HUB_IR_VERSION)


def _info(operand: Operand) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(operand.name, helper.np_dtype_to_tensor_dtype(operand.dtype), operand.shape)


def _splice(graph: ir.Graph, node: ir.Node, replacement: ir.Model) -> None:
    """Put the nodes of ``replacement``, whose inputs and outputs are called as those of ``node``, in the place of ``node``."""
    inner = replacement.graph
    outer = {value.name: value for value in node.inputs if value is not None}
    results = {str(value.name): value for value in inner.outputs}
    for value in inner.inputs:
        value.replace_all_uses_with(outer[value.name], replace_graph_outputs=True)
    inner.outputs.clear()
    nodes = list(inner)
    inner.remove(nodes)
    _move_constants(graph, node, inner, outer, {id(value) for value in results.values()})
    taken: set[str] = set()
    for new in nodes:  # a rewrite's own name can be what the decomposition calls another node
        new.name = _unused(_inside(node, str(new.name)), taken)
        taken.add(new.name)
        if KEEP_FLOAT32 in node.metadata_props:
            new.metadata_props[KEEP_FLOAT32] = node.metadata_props[KEEP_FLOAT32]
        for value in new.outputs:
            if value.name and value.name not in results:
                value.name = _inside(node, value.name)
    nodes += _constant_results(node, nodes, results)
    old = [value for value in node.outputs if value.name in results]
    fresh = [results[str(value.name)] for value in old]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, old, fresh)


def _move_constants(
    graph: ir.Graph, node: ir.Node, inner: ir.Graph, outer: dict[str | None, ir.Value], results: set[int]
) -> None:
    """Initializers of the inner graph become ``graph``'s; those that were the node's own inputs are its values again."""
    for name, value in list(inner.initializers.items()):
        inner.initializers.pop(name)
        if name in outer and outer[name].is_initializer() and id(value) not in results:
            value.replace_all_uses_with(outer[name])
        else:
            value.name = _free_name(graph, _inside(node, name))
            graph.register_initializer(value)


def _constant_results(node: ir.Node, nodes: list[ir.Node], results: dict[str, ir.Value]) -> list[ir.Node]:
    """A result that folded into a constant, or that is an input, gets a node that hands it on under its name."""
    produced = {id(value) for new in nodes for value in new.outputs}
    added = []
    for index, (name, value) in enumerate(list(results.items())):
        if id(value) not in produced:
            handed = ir.node("Identity", [value], name=_inside(node, f"constant_result_{index}"))
            handed.outputs[0].shape, handed.outputs[0].type = value.shape, value.type
            handed.outputs[0].name = name
            results[name] = handed.outputs[0]
            added.append(handed)
    return added


def _inside(node: ir.Node, name: str) -> str:
    return f"{node.name}/{name.removeprefix(f'{node.name}/')}"


def _free_name(graph: ir.Graph, name: str) -> str:
    return _unused(name, graph.initializers)


def _unused(name: str, taken: Container[str]) -> str:
    count, candidate = 0, name
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
