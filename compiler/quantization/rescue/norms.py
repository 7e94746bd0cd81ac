"""Equalisation through normalisations: the same function, with a normalisation's channels of like range behind it.

A layer norm ends in gain * x + bias per channel, so gain[c] and bias[c] may be divided and the input column c of every matrix
that reads the result multiplied by s[c] > 0, without a change in what the model computes. RMS norms, which the hub has in single
operators, and layer norms that a source wrote out end in a multiplication by the gain and perhaps an addition of the bias:

    s[c] = peak[c]**a / max|W[:, c]|**(1 - a), over all matrices W that read it

Source: G. Xiao et al., "SmoothQuant" (2022), equation 4, which folds s into the norm as here; a is 0.5 there for most models and
0.75 where outliers are worst. The largest peak stays what it was, so nothing but the balance changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.channels import ChannelObserver
from compiler.calibration.dataset import Dataset
from compiler.passes.edit import integer, refold, static_shape
from compiler.pruning.activations import stream
from compiler.quantization.rescue.bias import with_corrected
from compiler.quantization.rescue.candidate import Bench, Candidate, candidate
from compiler.quantization.rescue.equalise import only_reader
from compiler.quantization.structure import constant_of, name_of, value_name

STRENGTHS: Final = (0.5, 0.75)
LARGEST_FACTOR: Final = 1e4
SAMPLES: Final = 128


@dataclass(frozen=True, slots=True)
class Joint:
    """``scaled``: (node, input) of the gain and of the bias; ``readers``: the Gemm and MatMul nodes that alone read ``between``."""

    scaled: tuple[tuple[str, int], ...]
    between: str
    readers: tuple[str, ...]


def equalise_norms(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` equalised and calibrated anew, then with corrected biases, per strength; nothing without such norms."""
    joints = find_joints(start.reference)
    for strength in STRENGTHS if joints else ():
        made = candidate(equalised_norms(start.reference, joints, bench.train, strength), bench.train, start.options)
        detail = f"{len(joints)} normalisations, strength {strength}"
        yield from with_corrected(detail, made, bench)


def equalised_norms(model: ir.Model, joints: list[Joint], dataset: Dataset, strength: float) -> ir.Model:
    """A float hub that computes the same; ``model`` is not modified. ``strength``: the exponent a, from 0 to 1."""
    seen = {joint.between: ChannelObserver(axis=-1) for joint in joints}
    for values in stream(model, list(seen), dataset.take(SAMPLES).feeds):
        for name, observer in seen.items():
            observer.update(values[name])
    result = model.clone()
    nodes = {name_of(node): node for node in result.graph}
    for joint in joints:
        readers = [nodes[name] for name in joint.readers]
        scaled = [(nodes[name], index) for name, index in joint.scaled]
        _rescale(result.graph, scaled, readers, seen[joint.between].peak, strength)
    return result


def find_joints(model: ir.Model) -> list[Joint]:
    """In graph order."""
    found = []
    for node in model.graph:
        scaled = _scaled(node)
        last = scaled[-1][0] if scaled else node
        readers = _readers(last.outputs[0]) if scaled else None
        if readers:
            places = tuple((name_of(one), index) for one, index in scaled)
            found.append(Joint(places, value_name(last.outputs[0]), tuple(map(name_of, readers))))
    return found


def _scaled(node: ir.Node) -> list[tuple[ir.Node, int]]:
    """The gain and the bias of a normalisation that ends with ``node``, or with the Add behind it; empty if it is none.

    Both are per channel of the last axis and read by nobody else.
    """
    if node.op_type == "LayerNormalization":
        shape = static_shape(node.outputs[0])
        last = shape is not None and integer(node, "axis", -1) % len(shape) == len(shape) - 1
        places = [(node, index) for index, v in enumerate(node.inputs) if index and v is not None]
        return places if last and all(_is_vector(*place) for place in places) else []
    gain = _vector_of(node, "Mul")
    if gain is None:
        return []
    reader = only_reader(node.outputs[0]) or _second_reader(node.outputs[0])
    bias = None if reader is None else _vector_of(reader, "Add")
    return [(node, gain)] if bias is None or reader is None else [(node, gain), (reader, bias)]


def _vector_of(node: ir.Node, op_type: str) -> int | None:
    """Which input of ``node`` is a constant per channel; the other holds data."""
    if node.domain or node.op_type != op_type:
        return None
    found = [index for index in (0, 1) if _is_vector(node, index)]
    return found[0] if len(found) == 1 and constant_of(node.inputs[1 - found[0]]) is None else None


def _is_vector(node: ir.Node, index: int) -> bool:
    """Whether the input is a constant along the last axis of the node's output, which nobody else reads."""
    value, shape = node.inputs[index], static_shape(node.outputs[0])
    array = constant_of(value)
    if array is None or value is None or not shape or not _unshared(value):
        return False
    return array.ndim > 0 and array.ndim <= len(shape) and array.size == array.shape[-1] == shape[-1]


def _second_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads ``value``, as its second input: Add commutes."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].idx == 1 and not value.is_graph_output() else None


def _readers(value: ir.Value) -> list[ir.Node] | None:
    """The matrix products that read ``value``, straight or reshaped; None if anything else does, or nothing."""
    if value.is_graph_output():
        return None
    found: list[ir.Node] = []
    for node, index in value.uses():
        if index != 0:
            return None
        if node.op_type == "Reshape" and _keeps_channels(node):
            behind = _readers(node.outputs[0])
            if behind is None:
                return None
            found += behind
        elif _is_matrix_product(node):
            found.append(node)
        else:
            return None
    return found or None


def _keeps_channels(node: ir.Node) -> bool:
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    return bool(before) and bool(after) and before[-1] == after[-1]  # type: ignore[index]


def _is_matrix_product(node: ir.Node) -> bool:
    if node.domain or node.op_type not in ("Gemm", "MatMul") or integer(node, "transA", 0):
        return False
    weight = node.inputs[1]
    array = constant_of(weight)
    return array is not None and array.ndim == 2 and weight is not None and _unshared(weight)


def _unshared(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def factors(peak: NDArray[np.float64], reach: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """s [channels] from the channels' peaks and the reach max|W[:, c]| of the weights that read them; 1 where either is 0."""
    s = np.ones_like(peak)
    alive = (peak > 0) & (reach > 0)
    if alive.any():
        s[alive] = peak[alive] ** strength / reach[alive] ** (1 - strength)
        s[alive] *= (peak[alive] / s[alive]).max() / peak[alive].max()
    return np.clip(s, 1 / LARGEST_FACTOR, LARGEST_FACTOR)


def _rescale(
    graph: ir.Graph,
    scaled: list[tuple[ir.Node, int]],
    readers: list[ir.Node],
    peak: NDArray[np.float64],
    strength: float,
) -> None:
    weights = [_by_input(reader) for reader in readers]
    reach = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    s = factors(peak, reach, strength)
    for node, index in scaled:
        parameter = constant_of(node.inputs[index])
        assert parameter is not None
        _put(graph, node, index, parameter.astype(np.float64) / s)
    for reader, weight in zip(readers, weights, strict=True):
        wider = weight * s[:, None]
        _put(graph, reader, 1, wider.T if integer(reader, "transB", 0) else wider)


def _by_input(node: ir.Node) -> NDArray[np.float64]:
    """The weight as [inputs, outputs]."""
    weight = constant_of(node.inputs[1])
    assert weight is not None
    return np.asarray(weight.T if integer(node, "transB", 0) else weight, np.float64)


def _put(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float64]) -> None:
    node.replace_input_with(index, refold(graph, node.inputs[index], array, f"{node.name}/equalised"))
