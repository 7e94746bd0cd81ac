"""Scan and Loop with a known number of steps, written out step by step: edge runtimes carry straight graphs.

Source: ONNX's definitions of Scan (opset 11) and Loop (opset 13).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.decompose.bodies import typed

MAX_STEPS = 512  # beyond, the unrolled graph serves nobody


def unroll(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Unroll every top-level Scan and Loop whose step count is known; others stay and are refused later as what they are."""
    for _ in range(4):  # loops within loops
        if not any(node.op_type in ("Scan", "Loop") for node in proto.graph.node):
            break
        proto = typed(proto)
        unroller = _Unroller(proto)
        if not unroller.run():
            break
    return proto


@dataclass
class _Unroller:
    """Rewrites one graph in place."""

    proto: onnx.ModelProto
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)

    def run(self) -> bool:
        """Whether something was unrolled."""
        graph = self.proto.graph
        for value in (*graph.value_info, *graph.input, *graph.output):
            self.shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        changed = False
        for index, node in enumerate(graph.node):
            prefix = node.name or f"{node.op_type}_{index}"
            done = (node.op_type == "Scan" and self._scan(node, prefix)) or (
                node.op_type == "Loop" and self._loop(node, prefix)
            )
            changed = changed or bool(done)
            if not done:
                self.nodes.append(node)
        if changed:
            del graph.node[:]
            graph.node.extend(self.nodes)
        return changed

    def _scan(self, node: onnx.NodeProto, prefix: str) -> bool:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        body: onnx.GraphProto = attributes["body"]
        scans = attributes["num_scan_inputs"]
        states = len(node.input) - scans
        scanned = list(node.input)[states:]
        in_axes = attributes.get("scan_input_axes", [0] * scans)
        out_count = len(node.output) - states
        out_axes = attributes.get("scan_output_axes", [0] * out_count)
        backwards = attributes.get("scan_input_directions", [0] * scans)
        out_backwards = attributes.get("scan_output_directions", [0] * out_count)
        if any(name not in self.shapes and name not in self.constants for name in scanned):
            return False
        first = self._shape(scanned[0])
        steps = first[in_axes[0] % len(first)] if first else 0
        if not 0 < steps <= MAX_STEPS:
            return False
        carried, collected = list(node.input)[:states], [[""] * steps for _ in range(out_count)]
        for t in range(steps):
            inputs = list(carried)
            for k, name in enumerate(scanned):
                position = steps - 1 - t if backwards[k] else t
                inputs.append(self._at(name, position, in_axes[k], f"{prefix}/step_{t}/in_{k}"))
            outputs = self._step(body, inputs, f"{prefix}/step_{t}/")
            carried = outputs[:states]
            for k in range(out_count):
                collected[k][steps - 1 - t if out_backwards[k] else t] = outputs[states + k]
        self._finish(node, prefix, carried, collected, out_axes)
        return True

    def _loop(self, node: onnx.NodeProto, prefix: str) -> bool:
        """Only a constant trip count with a condition that is true and stays so."""
        body = helper.get_attribute_value(node.attribute[0])
        count = self.constants.get(node.input[0]) if node.input[0] else None
        start = self.constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else np.asarray(True)
        if count is None or start is None or not bool(np.all(start)) or not _condition_stays(body):
            return False
        steps = int(np.asarray(count).ravel()[0])
        if not 0 < steps <= MAX_STEPS:
            return False
        states = len(node.input) - 2
        out_count = len(node.output) - states
        carried, collected = list(node.input)[2:], [[""] * steps for _ in range(out_count)]
        truth = self._constant(np.asarray(True), f"{prefix}/true")
        for t in range(steps):
            number = self._constant(np.asarray(t, np.int64), f"{prefix}/step_{t}/number")
            outputs = self._step(body, [number, truth, *carried], f"{prefix}/step_{t}/")[1:]
            carried = outputs[:states]
            for k in range(out_count):
                collected[k][t] = outputs[states + k]
        self._finish(node, prefix, carried, collected, [0] * out_count)
        return True

    def _shape(self, name: str) -> Sequence[int]:
        return self.shapes[name] if name in self.shapes else list(self.constants[name].shape)

    def _constant(self, array: Any, name: str) -> str:
        self.proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _at(self, name: str, position: int, axis: int, result: str) -> str:
        index = self._constant(np.asarray(position, np.int64), f"{result}/position")
        self.nodes.append(helper.make_node("Gather", [name, index], [result], name=result, axis=axis))
        return result

    def _step(self, body: onnx.GraphProto, inputs: Sequence[str], prefix: str) -> list[str]:
        """One copy of ``body``; names of its outputs. Names from outside the body stay as they are."""
        return inlined(self.proto.graph, body, inputs, prefix, self.nodes)

    def _finish(
        self,
        node: onnx.NodeProto,
        prefix: str,
        carried: Sequence[str],
        collected: Sequence[Sequence[str]],
        axes: Sequence[int],
    ) -> None:
        for index, (name, value) in enumerate(zip(node.output, carried, strict=False)):
            if name:
                self.nodes.append(helper.make_node("Identity", [value], [name], name=f"{prefix}/state_{index}"))
        for k, parts in enumerate(collected):
            name = node.output[len(carried) + k]
            if not name:
                continue
            place = self._constant(np.asarray([axes[k]], np.int64), f"{prefix}/axis_{k}")
            wide = []
            for t, part in enumerate(parts):
                wide.append(f"{prefix}/out_{k}_{t}")
                self.nodes.append(helper.make_node("Unsqueeze", [part, place], [wide[-1]], name=wide[-1]))
            self.nodes.append(helper.make_node("Concat", wide, [name], name=f"{prefix}/out_{k}", axis=axes[k]))


def inlined(
    graph: onnx.GraphProto, body: onnx.GraphProto, inputs: Sequence[str], prefix: str, nodes: list[onnx.NodeProto]
) -> list[str]:
    """Append a copy of ``body`` to ``nodes``, its constants to ``graph``; names of its outputs, made its own by ``prefix``."""
    renamed = {value.name: name for value, name in zip(body.input, inputs, strict=True)}
    for tensor in body.initializer:
        renamed[tensor.name] = prefix + tensor.name
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), prefix + tensor.name))
    for index, node in enumerate(body.node):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for name in node.output:
            renamed[name] = prefix + name if name else ""
        rename(copy, renamed)
        copy.name = f"{prefix}{node.name or f'{node.op_type}_{index}'}"
        nodes.append(copy)
    return [renamed.get(value.name, value.name) for value in body.output]


def rename(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    """Change the node's names in place: inputs and outputs; in subgraphs, names that come from outside them."""
    node.input[:] = [renamed.get(name, name) for name in node.input]
    node.output[:] = [renamed.get(name, name) for name in node.output]
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            inner |= {name for child in graph.node for name in child.output}
            outside = {old: new for old, new in renamed.items() if old not in inner}
            for child in graph.node:
                rename(child, outside)
            for value in graph.output:
                value.name = outside.get(value.name, value.name)


def _condition_stays(body: onnx.GraphProto) -> bool:
    """Whether the body hands its condition on, or says true."""
    wanted, given = body.output[0].name, body.input[1].name
    if wanted == given:
        return True
    for tensor in body.initializer:
        if tensor.name == wanted:
            return bool(np.all(numpy_helper.to_array(tensor)))
    for node in body.node:
        if wanted in node.output:
            if node.op_type == "Identity":
                return node.input[0] == given
            if node.op_type == "Constant":
                return bool(np.all(numpy_helper.to_array(node.attribute[0].t)))
    return False
