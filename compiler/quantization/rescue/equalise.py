"""Cross-layer equalisation: the same function with channels of like range, so that one scale per tensor suits them all.

Between two layers A and B joined by something positively homogeneous, f(x / s) = f(x) / s per channel, so A's channel c may be
divided and B's input channel c multiplied by s[c] > 0 without a change in what the model computes. Weights have a scale per
output channel, so what is balanced is the activation's range against B's weights:

    s[c] = sqrt(range[c] / max|W_B[:, c]|), and s[c] = range[c] where B is depthwise (its channels have scales of their own)

Source: M. Nagel et al. (2019), section 4.1, with ranges measured as in G. Xiao et al., "SmoothQuant" (2022). Clip(0, 6) is
homogeneous below 6 only: a channel that meets the ceiling stays as it is, and none is scaled to meet it. HardSwish, Sigmoid
and the like are not homogeneous and end the search; swish.py crosses those that multiply by a gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.channels import ChannelObserver
from compiler.calibration.dataset import Dataset
from compiler.passes.edit import refold
from compiler.pruning.activations import stream
from compiler.quantization.rescue.bias import with_corrected
from compiler.quantization.rescue.candidate import Bench, Candidate, candidate
from compiler.quantization.structure import constant_of, name_of, value_name
from runtimes.session import Array

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
CEILING = 6.0
HEADROOM = 0.9  # a rescaled channel reaches at most this share of the ceiling on calibration samples
LARGEST_FACTOR = 1e4
SAMPLES = 128


@dataclass(frozen=True, slots=True)
class Pair:
    """Names of the nodes ``first`` and ``second`` and of the value after the activation between; ``clipped``: by Clip(0, 6)."""

    first: str
    second: str
    between: str
    clipped: bool
    depthwise: bool


def equalise_layers(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` equalised and calibrated anew, then that with corrected biases; nothing where no pair is found."""
    model, pairs = equalised(start.reference, bench.train)
    if not pairs:
        return
    # Rounding and biases that were chosen for the other scales are of no use here.
    made = candidate(model, bench.train, start.options)
    yield from with_corrected(f"{len(pairs)} pairs", made, bench)
    yield from _absorbing(model, pairs, start, bench)


def _absorbing(model: ir.Model, pairs: list[Pair], start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    from compiler.quantization.rescue.absorb import absorbed  # which knows pairs

    lighter, channels = absorbed(model, pairs, bench.train)
    if not channels:
        return
    made = candidate(lighter, bench.train, start.options)
    yield from with_corrected(f"{len(pairs)} pairs, {channels} channels absorbed", made, bench)


def equalised(model: ir.Model, dataset: Dataset) -> tuple[ir.Model, list[Pair]]:
    """A float hub that computes the same, and the pairs that were rescaled; ``model`` is not modified."""
    pairs = find_pairs(model)
    if not pairs:
        return model, []
    seen = _channels(model, [pair.between for pair in pairs], dataset.take(SAMPLES))
    result = model.clone()
    nodes = {name_of(node): node for node in result.graph}
    for pair in pairs:
        _rescale(result.graph, nodes[pair.first], nodes[pair.second], pair, seen[pair.between].peak)
    return result, pairs


def find_pairs(model: ir.Model) -> list[Pair]:
    """Pairs in graph order."""
    found = [_pair_from(node) for node in model.graph]
    return [pair for pair in found if pair is not None]


def _pair_from(node: ir.Node) -> Pair | None:
    if not is_layer(node):
        return None
    found = layer_behind(node.outputs[0])
    if found is None:
        return None
    reader, between, clipped = found
    return Pair(name_of(node), name_of(reader), value_name(between), clipped, bool(_grouped(reader)))


def is_layer(node: ir.Node) -> bool:
    """A Conv or Gemm whose weights nobody else reads, so that they may be rescaled."""
    return node.op_type in ("Conv", "Gemm") and _weights_are_its_own(node) and _plain_gemm(node)


def layer_behind(value: ir.Value) -> tuple[ir.Node, ir.Value, bool] | None:
    """The only layer that reads ``value``, through what keeps scales; the last activation between; whether it is clipped.

    None where there is no such layer, or its groups hold several channels.
    """
    between, clipped = value, False
    while (reader := only_reader(value)) is not None:
        if reader.op_type in ("Conv", "Gemm"):
            return (reader, between, clipped) if is_layer(reader) and _grouped(reader) is not None else None
        if not _passes_scales(reader):
            return None
        clipped = clipped or reader.op_type == "Clip"
        value = reader.outputs[0]
        if reader.op_type in ("Relu", "LeakyRelu", "Clip"):
            between = value
    return None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads ``value``, as its first input; None where the model gives it out."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0][1] != 0:
        return None
    return uses[0][0]


def _passes_scales(node: ir.Node) -> bool:
    if node.op_type in HOMOGENEOUS:
        return True
    if node.op_type == "Clip":
        limits = [constant_of(v) for v in node.inputs[1:]]
        return [None if c is None else float(c) for c in limits] == [0.0, CEILING]
    if node.op_type in ("Flatten", "Reshape"):  # [batch, channels, 1, 1] to [batch, channels]
        source, target = node.inputs[0], node.outputs[0]
        before, after = list(source.shape or ()) if source else [], list(target.shape or ())
        return len(before) > 2 and len(after) == 2 and before[:2] == after and all(d == 1 for d in before[2:])
    return False


def _weights_are_its_own(node: ir.Node) -> bool:
    constants = [v for v in node.inputs[1:] if v is not None]
    return all(constant_of(v) is not None and len(v.uses()) == 1 and not v.is_graph_output() for v in constants)


def _plain_gemm(node: ir.Node) -> bool:
    if node.op_type != "Gemm":
        return True
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return all(node.attributes[k].value == v for k, v in plain.items() if k in node.attributes)


def _grouped(node: ir.Node) -> bool | None:
    """True: depthwise, one input channel per group. False: no groups. None: groups of several channels."""
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    weight = constant_of(node.inputs[1])
    if group == 1 or weight is None:
        return False
    return True if weight.shape[1] == 1 and weight.shape[0] == group else None


def _channels(model: ir.Model, names: list[str], dataset: Dataset) -> dict[str, ChannelObserver]:
    """What the values called ``names`` hold, channel by channel."""
    found = {name: ChannelObserver() for name in names}
    for values in stream(model, names, dataset.feeds):
        for name, observer in found.items():
            observer.update(values[name])
    return found


def factors(peak: NDArray[np.float64], weight: NDArray[np.float64], pair: Pair) -> NDArray[np.float64]:
    """s [channels] from the channels' peaks and ``weight``, max|W_B[:, c]| of the weights that read them.

    The largest peak stays what it was, so that nothing but the balance changes.
    """
    alive = (peak > 0) & (weight > 0)
    if not alive.any():
        return np.ones_like(peak)
    s = np.ones_like(peak)
    s[alive] = peak[alive] if pair.depthwise else np.sqrt(peak[alive] / weight[alive])
    s[alive] *= (peak[alive] / s[alive]).max() / peak[alive].max()
    s = np.clip(s, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    if pair.clipped:
        room = CEILING * HEADROOM
        s = np.where(peak < room, np.maximum(s, peak / room), 1.0)
    return np.where(alive, s, 1.0)


def _rescale(graph: ir.Graph, first: ir.Node, second: ir.Node, pair: Pair, peak: NDArray[np.float64]) -> None:
    rescale(graph, first, second, factors(peak, reach(second, pair.depthwise), pair), pair.depthwise)


def reach(second: ir.Node, depthwise: bool) -> NDArray[np.float64]:
    """max|W| over all weights of a layer that read an input channel, [channels]."""
    tail = _weight(second)
    axis = 0 if depthwise else 1 - _output_axis(second)
    return np.asarray(np.abs(tail).max(axis=tuple(a for a in range(tail.ndim) if a != axis)), np.float64)


def rescale(graph: ir.Graph, first: ir.Node, second: ir.Node, s: NDArray[np.float64], depthwise: bool) -> None:
    """Divide the output channels of ``first`` by ``s`` [channels], and multiply what ``second`` reads of them."""
    head, tail = _weight(first), _weight(second)
    _put(graph, first, 1, head / _along(s, head, _output_axis(first)))
    _put(graph, second, 1, tail * _along(s, tail, 0 if depthwise else 1 - _output_axis(second)))
    if len(first.inputs) > 2 and (bias := constant_of(first.inputs[2])) is not None:
        _put(graph, first, 2, np.broadcast_to(bias.astype(np.float64).reshape(-1), s.shape) / s)


def _weight(node: ir.Node) -> NDArray[np.float64]:
    array = constant_of(node.inputs[1])
    assert array is not None
    return array.astype(np.float64)


def _output_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 0
    return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1


def _along(s: NDArray[np.float64], array: Array, axis: int) -> NDArray[np.float64]:
    return s.reshape([-1 if a == axis else 1 for a in range(array.ndim)])


def _put(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float64]) -> None:
    """Replace a constant input that nobody else reads."""
    node.replace_input_with(index, refold(graph, node.inputs[index], array, f"{node.name}/equalised"))
