"""Scales under which every runtime gives the same integers: no sum lies halfway between two codes, no hard swish is rounded twice.

A sum of two codes is (a - z_a) * s_a / s_out + (b - z_b) * s_b / s_out, rounded. onnxruntime computes the ratios in float32,
XNNPACK in 21-bit integers (XNNPACK, src/microparams-init.c, xnn_init_qs8_add_minmax_*_params: the larger multiplier lies in
[2^20, 2^21)), LiteRT's own kernel in 31 bits; where a sum comes out near a half, they round to different codes. There are only
65,536 pairs of codes: the output's scale is raised, by less than a thousandth, until no pair lies there. One code in 500,000
differed before, which a deep net multiplies.

A hard swish x * min(max(x + 3, 0), 6) / 6 is exact on integers where 3 is a whole number of steps of x: its scale becomes 3 / n.
Where the range of x is too narrow for that, LiteRT's kernel computes it in 16 bits: the output's scale is raised until all 256
codes are right.

An average of four codes is half a step every fourth time. With a scale of few digits onnxruntime's float32 finds exactly a half,
and rounds it to even as XNNPACK does, if the zero point is even too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.quantization import fixed_point
from compiler.quantization.params import constant_params
from compiler.quantization.spec import QParams
from compiler.quantization.structure import Structure, constant_of, name_of, value_name
from compiler.quantization.ties import Ties

MULTIPLIER_BITS = 20  # of the exponent of XNNPACK's larger multiplier
FLOAT_ERROR = 2e-5  # steps: three float32 roundings of numbers below 256, each of half a last place, 2^-17
CANDIDATES = 2048  # scales looked at for a sum
EVALUATED = 64  # of them, on all pairs of codes
WHOLE_STEPS = (16, 127)
LARGEST_WINDOW = 16  # elements of an average pool, for whose halves a scale is shortened
LARGEST_MEAN = 1024  # elements, whose sums can have a quarter of a million values
MEANS = ("GlobalAveragePool", "ReduceMean")
RELATED = ("Add", "Sub", "Relu", "Clip", "HardSigmoid", "HardSwish", *MEANS)
ROUNDS = 3  # an output's scale may be another sum's input that was settled before

Activations = dict[str, QParams]
Scales = NDArray[np.float32]
Grid = Callable[[float], Scales]  # from a scale to those at or above it that its values may have, the nearest first
Terms = list[tuple[float, NDArray[np.float64]]]  # per operand its scale, and the steps from zero that it can have


class Relation(Protocol):
    """One node whose codes are to be the same in every runtime. ``output``: the activation that holds them."""

    @property
    def output(self) -> str: ...

    def agrees(self, activations: Activations) -> bool:
        """Whether all possible codes are right in every runtime."""
        ...


@dataclass(frozen=True, slots=True)
class Sum:
    """An Add, a Sub, a HardSigmoid as alpha * x + beta, or the mean of ``count`` codes.

    Args:
        inputs: names of activations, each with the factor that multiplies it.
        constant: scale and distinct steps of a constant operand; None without.
    """

    output: str
    inputs: tuple[tuple[str, float], ...]
    constant: tuple[float, NDArray[np.float64]] | None = None
    count: int = 1

    def terms(self, activations: Activations) -> Terms:
        found = []
        for name, factor in self.inputs:
            params = activations[name]
            steps = _steps(params, self.count) * np.sign(factor)
            found.append((float(params.scale[0]) * abs(factor) / self.count, steps))
        return found if self.constant is None else [*found, self.constant]

    def agrees(self, activations: Activations) -> bool:
        """Whether no pair of codes comes out near a half, and fixed-point multipliers round every pair as exact ones do.

        Means are multiplied by float32 everywhere.
        """
        params = activations[self.output]
        ratios = [(own / float(params.scale[0]), steps) for own, steps in self.terms(activations)]
        exact = _outer([ratio * steps for ratio, steps in ratios])
        power = _power(ratios)
        fixed = exact if self.count > 1 else _outer([np.rint(ratio * power) / power * steps for ratio, steps in ratios])
        inside = (exact > params.qmin - params.zero_point - 1) & (exact < params.qmax - params.zero_point + 1)
        return not bool((inside & (_near_half(exact) | (np.floor(exact + 0.5) != np.floor(fixed + 0.5)))).any())


@dataclass(frozen=True, slots=True)
class Swish:
    """A HardSwish by LiteRT's kernel."""

    output: str
    source: str

    def agrees(self, activations: Activations) -> bool:
        source, result = activations[self.source], activations[self.output]
        x = _steps(source) * np.float64(source.scale[0])
        exact = x * np.clip(x + 3, 0, 6) / 6 / np.float64(result.scale[0])
        wanted = np.clip(np.rint(exact) + result.zero_point, result.qmin, result.qmax)
        return bool(np.array_equal(wanted, fixed_point.hard_swish(source, result)) and not _near_half(exact).any())


def agreeing(model: ir.Model, structure: Structure, ties: Ties, activations: Activations) -> Activations:
    """``activations`` with scales moved so that sums and hard swishes are exact; those that a kernel prescribes stay."""
    settled = dict(activations)
    grids = _grids(model, structure, ties, settled)
    for group, grid in grids.items():
        if grid is not whole_steps:
            _make_even(group, settled)
        _rescale(group, grid(_scale(group, settled))[0], settled)
    relations: dict[frozenset[str], list[Relation]] = {}
    whole = frozenset().union(*(group for group, grid in grids.items() if grid is whole_steps))
    for one in _relations(model, structure, settled, whole):
        if not ties.is_fixed(one.output):
            relations.setdefault(ties.group(one.output), []).append(one)
    for _ in range(ROUNDS):
        changed = [group for group, found in relations.items() if _settle(group, found, grids.get(group), settled)]
        if not changed:
            break
    return settled


def whole_steps(scale: float) -> Scales:
    """3 / n. Below ``WHOLE_STEPS`` the scale could grow by more than a sixteenth, above 6 would not fit 255 steps."""
    steps = int(3 / scale * (1 + 1e-6))
    scales: Scales = (3 / np.arange(steps, steps - steps // WHOLE_STEPS[0], -1)).astype(np.float32)
    return scales


def short(bits: int) -> Grid:
    """Scales of ``bits`` binary digits."""

    def grid(scale: float) -> Scales:
        step = 2.0 ** (np.floor(np.log2(scale)) + 1 - bits)
        scales: Scales = ((np.ceil(scale / step) + np.arange(EVALUATED)) * step).astype(np.float32)
        return scales

    return grid


def coarse(scale: float) -> Scales:
    """For multipliers of 15 bits: below a hundredth in all."""
    return (scale * (1 + np.arange(EVALUATED) * 2.0**-13)).astype(np.float32)


def fine(scale: float) -> Scales:
    """For multipliers of 21 bits: below a thousandth in all."""
    return (scale * (1 + np.arange(CANDIDATES) * 2.0**-21)).astype(np.float32)


def _grids(model: ir.Model, structure: Structure, ties: Ties, activations: Activations) -> dict[frozenset[str], Grid]:
    """The scales that inputs of hard swishes and average pools may have, by group."""
    found: dict[frozenset[str], Grid] = {}
    for node in model.graph:
        if node.op_type not in ("HardSwish", "AveragePool") or not structure.is_int8(node) or node.inputs[0] is None:
            continue
        name = value_name(node.inputs[0])
        params, group = activations.get(name), ties.group(name)
        if params is None or params.dtype != "int8" or ties.is_fixed(name):
            continue
        if node.op_type == "AveragePool":
            elements = int(np.prod(node.attributes["kernel_shape"].as_ints()))
            # Codes of eight bits and their sums stay exact in float32, so that a half is one for onnxruntime too.
            if elements & (elements - 1) == 0 and elements <= LARGEST_WINDOW:
                found.setdefault(group, short(16 - elements.bit_length()))
        elif WHOLE_STEPS[0] <= 3 / float(params.scale[0]) * (1 + 1e-6) < WHOLE_STEPS[1] + 1:
            found[group] = whole_steps
    return found


def _make_even(group: frozenset[str], activations: Activations) -> None:
    """Give the group an even zero point, with a step less on the longer side and a scale that makes up for it.

    onnxruntime's QLinearAveragePool rounds to even after it has added the zero point, the other kernels before.
    """
    for name in group & activations.keys():
        params = activations[name]
        below, above = params.zero_point - params.qmin, params.qmax - params.zero_point
        if params.zero_point % 2:
            moved, longer = (-1, below) if below > above else (1, above)
            scale = params.scale * np.float32(longer / (longer - 1))
            activations[name] = replace(params, scale=scale, zero_point=params.zero_point + moved)


def _relations(
    model: ir.Model, structure: Structure, activations: Activations, whole: frozenset[str]
) -> Iterator[Relation]:
    for node in model.graph:
        if node.op_type not in RELATED or not structure.is_int8(node):
            continue
        output = structure.decisions[name_of(node)].fused_into or value_name(node.outputs[0])
        read = [value_name(value) for value in node.inputs if value is not None and constant_of(value) is None]
        if not all(name in activations and activations[name].dtype == "int8" for name in (output, *read)):
            continue
        if node.op_type == "HardSigmoid":
            yield _hard_sigmoid(node, output, read[0])
        elif node.op_type in ("Relu", "Clip", *MEANS):
            count = _averaged(node) if node.op_type in MEANS else 1
            if count <= LARGEST_MEAN:
                yield Sum(output, ((read[0], 1.0),), count=count)
        elif node.op_type != "HardSwish":
            yield _sum(node, output)
        elif read[0] not in whole:
            yield Swish(output, read[0])


def _sum(node: ir.Node, output: str) -> Sum:
    inputs, constant = [], None
    for value, factor in zip(node.inputs, (1.0, -1.0 if node.op_type == "Sub" else 1.0), strict=True):
        assert value is not None
        array = constant_of(value)
        if array is None:
            inputs.append((value_name(value), factor))
        else:
            params = constant_params(array)
            codes = np.unique(params.quantize(array)).astype(np.float64)
            constant = float(params.scale[0]), (codes - params.zero_point) * factor
    return Sum(output, tuple(inputs), constant)


def _averaged(node: ir.Node) -> int:
    """Elements per mean."""
    sizes = [
        int(np.prod([size for size in value.shape or () if isinstance(size, int)]))
        for value in (node.inputs[0], node.outputs[0])
        if value is not None
    ]
    return sizes[0] // max(sizes[1], 1)


def _hard_sigmoid(node: ir.Node, output: str, source: str) -> Sum:
    alpha, beta = (
        node.attributes[key].as_float() if key in node.attributes else default
        for key, default in (("alpha", 0.2), ("beta", 0.5))
    )
    return Sum(output, ((source, alpha),), (beta / 127, np.array([127.0])))  # beta as lowered: the largest code


def _settle(group: frozenset[str], found: list[Relation], grid: Grid | None, activations: Activations) -> bool:
    """Choose the group's scale, if the one it has does not do. Returns whether it changed."""
    if all(one.agrees(activations) for one in found):
        return False
    scale = _scale(group, activations)
    sums = [one for one in found if isinstance(one, Sum)]
    for candidate in _nearest((grid or (fine if len(sums) == len(found) else coarse))(scale), sums, activations):
        _rescale(group, candidate, activations)
        if all(one.agrees(activations) for one in found):
            return True
    _rescale(group, np.float32(scale), activations)
    return False


def _nearest(tried: Scales, sums: list[Sum], activations: Activations) -> Scales:
    """The scales to evaluate: those first whose sums' multipliers are nearest to integers."""
    distance = np.zeros(len(tried))
    for one in sums:
        scale, terms = float(activations[one.output].scale[0]), one.terms(activations)
        power = _power([(own / scale, steps) for own, steps in terms])
        for own, steps in terms:
            multipliers = own / tried.astype(np.float64) * power if own != scale else np.full(len(tried), power)
            distance += np.abs(multipliers - np.rint(multipliers)) * np.abs(steps).max()
    return tried[np.argsort(distance, kind="stable")[:EVALUATED]]


def _scale(group: frozenset[str], activations: Activations) -> float:
    return float(next(activations[name] for name in group if name in activations).scale[0])


def _power(ratios: Terms) -> float:
    """2^shift of XNNPACK's multipliers."""
    return float(2.0 ** (MULTIPLIER_BITS - np.floor(np.log2(max(ratio for ratio, _ in ratios)))))


def _steps(params: QParams, count: int = 1) -> NDArray[np.float64]:
    """All values that a sum of ``count`` codes can have, in steps from zero."""
    lowest, highest = ((limit - params.zero_point) * count for limit in (params.qmin, params.qmax))
    return np.arange(lowest, highest + 1, dtype=np.float64)


def _outer(terms: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return terms[0] if len(terms) == 1 else np.add.outer(terms[0], terms[1])


def _near_half(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = np.abs(values - np.floor(values) - 0.5) < FLOAT_ERROR
    return near


def _rescale(group: frozenset[str], scale: np.float32, activations: Activations) -> None:
    for name in group & activations.keys():
        activations[name] = replace(activations[name], scale=np.array([scale], np.float32))
