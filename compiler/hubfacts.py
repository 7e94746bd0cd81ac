"""Facts read off a hub model: its interface, its counts, what its outputs mean."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx_ir as ir

from compiler.passes.serialize import to_bytes
from runtimes.session import TensorSpec


def hub_inputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The hub's inputs as specs."""
    return tuple(spec_of(value) for value in model.graph.inputs)


def spec_of(value: ir.Value) -> TensorSpec:
    assert value.name and value.shape is not None and value.dtype is not None
    shape = tuple(d if isinstance(d, int) else None for d in value.shape)
    return TensorSpec(value.name, str(value.dtype.numpy()), shape)


def hub_outputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The hub's outputs as specs."""
    return tuple(spec_of(value) for value in model.graph.outputs)


def output_scales(quantized: ir.Model) -> dict[str, float]:
    """Scale of each graph output that is a DequantizeLinear's."""
    scales = {}
    for value in quantized.graph.outputs:
        node = value.producer()
        if node is not None and node.op_type == "DequantizeLinear":
            scale = node.inputs[1]
            assert value.name and scale is not None and scale.const_value is not None
            scales[value.name] = float(scale.const_value.numpy().max())
    return scales


def quantized_range(model: ir.Model, name: str) -> tuple[float, float] | None:
    """The real numbers that a graph input can tell apart, where it is quantized at once; None for others."""
    value = next(v for v in model.graph.inputs if v.name == name)
    node = next((use.node for use in value.uses() if use.node.op_type == "QuantizeLinear"), None)
    if node is None:
        return None
    scale, point = (node.inputs[i] for i in (1, 2))
    if scale is None or scale.const_value is None or point is None or point.const_value is None:
        return None
    zero, step = point.const_value.numpy(), float(scale.const_value.numpy())
    limits = np.iinfo(zero.dtype)
    return (limits.min - int(zero)) * step, (limits.max - int(zero)) * step


def semantics(model: ir.Model, labelled: bool) -> dict[str, str | None]:
    """What each output means: probabilities after a Softmax or Sigmoid, logits where the data has labels."""
    found: dict[str, str | None] = {}
    for value in model.graph.outputs:
        node = value.producer()
        assert value.name
        if node is not None and node.op_type in ("Softmax", "Sigmoid"):
            found[value.name] = "probabilities"
        else:
            found[value.name] = "logits" if labelled else None
    return found


def hub_facts(model: ir.Model) -> dict[str, Any]:
    """Counts for the report."""
    ops: dict[str, int] = {}
    for node in model.graph:
        ops[node.op_type] = ops.get(node.op_type, 0) + 1
    parameters = sum(int(np.prod(v.shape.numpy() if v.shape else ())) for v in model.graph.initializers.values())
    return {
        "opset": model.opset_imports.get(""),
        "nodes": len(model.graph),
        "parameters": parameters,
        "operators": dict(sorted(ops.items())),
        "inputs": [spec_of(v)._asdict() for v in model.graph.inputs],
        "outputs": [spec_of(v)._asdict() for v in model.graph.outputs],
    }


def digest_of(model: ir.Model) -> str:
    """SHA-256 of the model's deterministic bytes."""
    return hashlib.sha256(to_bytes(model)).hexdigest()


def index_limit(model: ir.Model, name: str) -> int:
    """How large an integer input may be, exclusively: rows of the table or depth of the encoding that it picks from, else 2."""
    limits = [2]
    waiting = [value for value in model.graph.inputs if value.name == name]
    while waiting:
        for use in waiting.pop().uses():
            node = use.node
            if node.op_type in ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity") and use.idx == 0:
                waiting.append(node.outputs[0])
            elif node.op_type == "Gather" and use.idx == 1 and node.inputs[0] is not None and node.inputs[0].shape:
                axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
                rows = node.inputs[0].shape[axis]
                limits += [rows] if isinstance(rows, int) else []
            elif node.op_type == "OneHot" and use.idx == 0 and node.inputs[1] is not None:
                depth = node.inputs[1].const_value
                limits += [] if depth is None else [int(depth.numpy().ravel()[0])]
    return min(limits[1:], default=2)
