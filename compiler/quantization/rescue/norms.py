"""Equalisation through normalisations: the same function, with a normalisation's channels of like range behind it.

A layer norm ends in gain * x + bias per channel, so gain[c] and bias[c] may be divided and the input column c of every matrix
that reads the result multiplied by s[c] > 0, without a change in what the model computes:

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
from compiler.quantization.rescue.bias import correct_biases
from compiler.quantization.rescue.candidate import Bench, Candidate, candidate
from compiler.quantization.structure import constant_of, name_of, value_name

GAINED: Final = ("LayerNormalization", "RMSNormalization")  # input 1 is the gain, input 2, if any, the bias
STRENGTHS: Final = (0.5, 0.75)
LARGEST_FACTOR: Final = 1e4
SAMPLES: Final = 128


@dataclass(frozen=True, slots=True)
class Joint:
    """Names of a normalisation, of its result, and of the Gemm and MatMul nodes that alone read it."""

    norm: str
    between: str
    readers: tuple[str, ...]


def equalise_norms(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` equalised and calibrated anew, then with corrected biases, per strength; nothing without such norms."""
    joints = find_joints(start.reference)
    for strength in STRENGTHS if joints else ():
        made = candidate(equalised_norms(start.reference, joints, bench.train, strength), bench.train, start.options)
        detail = f"{len(joints)} normalisations, strength {strength}"
        yield detail, made
        for more, corrected in correct_biases(made, bench):
            yield f"{detail}, biases of {more}", corrected


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
        _rescale(result.graph, nodes[joint.norm], readers, seen[joint.between].peak, strength)
    return result


def find_joints(model: ir.Model) -> list[Joint]:
    """In graph order."""
    found = []
    for node in model.graph:
        readers = _readers(node.outputs[0]) if node.op_type in GAINED and _scales_channels(node) else None
        if readers:
            found.append(Joint(name_of(node), value_name(node.outputs[0]), tuple(map(name_of, readers))))
    return found


def _scales_channels(node: ir.Node) -> bool:
    """Whether it normalises over the last axis alone, by a gain and a bias that nobody else reads."""
    shape = static_shape(node.outputs[0])
    if shape is None or integer(node, "axis", -1) % len(shape) != len(shape) - 1:
        return False
    parameters = [v for v in node.inputs[1:] if v is not None]
    arrays = [constant_of(v) if _unshared(v) else None for v in parameters]
    return bool(arrays) and all(a is not None and a.shape == shape[-1:] for a in arrays)


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
    graph: ir.Graph, norm: ir.Node, readers: list[ir.Node], peak: NDArray[np.float64], strength: float
) -> None:
    weights = [_by_input(reader) for reader in readers]
    reach = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    s = factors(peak, reach, strength)
    for index in range(1, len(norm.inputs)):
        parameter = constant_of(norm.inputs[index])
        if parameter is not None:
            _put(graph, norm, index, parameter.astype(np.float64) / s)
    for reader, weight in zip(readers, weights, strict=True):
        scaled = weight * s[:, None]
        _put(graph, reader, 1, scaled.T if integer(reader, "transB", 0) else scaled)


def _by_input(node: ir.Node) -> NDArray[np.float64]:
    """The weight as [inputs, outputs]."""
    weight = constant_of(node.inputs[1])
    assert weight is not None
    return np.asarray(weight.T if integer(node, "transB", 0) else weight, np.float64)


def _put(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float64]) -> None:
    node.replace_input_with(index, refold(graph, node.inputs[index], array, f"{node.name}/equalised"))
