"""Passes over the whole model: what must hold before the rewrites, and the order and names after them."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from compiler.passes.base import PassResult
from compiler.passes.edit import add_initializer

# Inputs whose numbers a quantizer rewrites: (operator, input indices). One copy per reader, or quantizing one spoils
# the other; onnxruntime's quantize_dynamic was measured silently wrong (cosine 0.62) on shared initializers.
_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "Gather": (0,),
    "PRelu": (1,),
}


class StripMetadata:
    """Removes doc strings, node metadata and producer strings: stack traces, absolute paths, dates, tool versions."""

    name = "strip_metadata"

    def __call__(self, model: ir.Model) -> PassResult:
        model.doc_string = model.producer_name = model.producer_version = model.domain = None
        model.model_version = None
        model.metadata_props.clear()
        for graph in model.graphs():
            graph.doc_string = None
            graph.metadata_props.clear()
            for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
                _strip_value(value)
            for node in graph:
                node.doc_string = None
                node.metadata_props.clear()
                for value in node.outputs:
                    _strip_value(value)
        return PassResult(model, True)


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()


class Flatten:
    """No functions, no initializers among the inputs, no Constant nodes; every tensor in memory as plain numbers."""

    name = "flatten"

    def __call__(self, model: ir.Model) -> PassResult:
        if model.functions:
            model = common.InlinePass()(model).model
        common.RemoveInitializersFromInputsPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        for graph in model.graphs():
            for value in graph.initializers.values():
                _plain(value)
        return PassResult(model, True)


def _plain(value: ir.Value) -> None:
    """Source files spread a tensor over raw_data, float_data or external files; equal numbers shall be equal bytes."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype is not ir.DataType.STRING:
        value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
    value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.numpy().shape)


class RemoveUnused:
    """Nodes, initializers and opset imports that nothing reads."""

    name = "remove_unused"

    def __call__(self, model: ir.Model) -> PassResult:
        nodes = common.RemoveUnusedNodesPass()(model).modified
        opsets = common.RemoveUnusedOpsetsPass()(model).modified
        return PassResult(model, bool(nodes or opsets))


class ShareEqual:
    """Keeps one of several equal initializers: the rewrites write the same shapes and bounds many times."""

    name = "share_equal"

    def __call__(self, model: ir.Model) -> PassResult:
        result = common.DeduplicateInitializersPass(size_limit=2**31)(model)
        return PassResult(result.model, bool(result.modified))


class MergeEqual:
    """Computes once what several nodes compute from the same values; Squeeze and Unsqueeze often end as equal Reshapes."""

    name = "merge_equal"

    def __call__(self, model: ir.Model) -> PassResult:
        result = common.CommonSubexpressionEliminationPass()(model)
        return PassResult(result.model, bool(result.modified))


class UntieWeights:
    """Gives every reader of a weight its own copy where several share one initializer."""

    name = "untie_weights"

    def __call__(self, model: ir.Model) -> PassResult:
        modified = False
        for value in list(model.graph.initializers.values()):
            uses = list(value.uses())
            if len(uses) > 1 and any(u.idx in _WEIGHTS.get(u.node.op_type, ()) for u in uses):
                assert value.const_value is not None
                for use in uses[1:]:
                    copy = add_initializer(model.graph, f"{value.name}_copy", value.const_value.numpy())
                    use.node.replace_input_with(use.idx, copy)
                modified = True
        return PassResult(model, modified)


class NameAll:
    """A unique, non-empty name on every node and value; inputs and outputs keep theirs."""

    name = "name_all"

    def __call__(self, model: ir.Model) -> PassResult:
        if model.graph.name is None or not model.graph.name:
            model.graph.name = "hub"
        for graph in model.graphs():
            for node in graph:
                if not node.name:
                    node.name = f"{node.op_type}_{node.outputs[0].name}"
        return PassResult(model, bool(common.NameFixPass()(model).modified))


class Sort:
    """Topological order of nodes, initializers in the order of their first reader: one order, so one file."""

    name = "sort"

    def __call__(self, model: ir.Model) -> PassResult:
        model.graph.sort()
        ordered = dict.fromkeys(
            v for node in model.graph.all_nodes() for v in node.inputs if v is not None and v.is_initializer()
        )
        initializers = model.graph.initializers
        wanted = [v for v in ordered if v.name is not None and initializers.get(v.name) is v]
        wanted += [v for v in initializers.values() if v not in ordered]
        modified = list(initializers.values()) != wanted
        for value in wanted:
            assert value.name is not None
            initializers.pop(value.name)
            initializers.add(value)
        return PassResult(model, modified)
