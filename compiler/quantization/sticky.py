"""Sticky quantization: scales and codes of the previous release are kept where the new weights allow, so that updates are small.

Rounding to nearest moves a code whenever a weight crosses the border between two steps, however little it moved. Here a code
stays as long as its weight lies within half a step plus a tolerance of it, and a scale as long as it still covers its weights
or values and wastes little. A code that stayed costs nothing to send. First the loosest ranges are taken, then the largest
tolerance, whose model loses no more than a stated amount on held-out samples against the new float model: accuracy alone would be
a bad judge, since the old model scores well too. Where many codes still changed, few changes that make up for the others are sought
layer by layer (pursuit.py), at the highest price per bit that the same gate lets pass.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from compiler.previous.numbers import Codes, Numbers
from compiler.quantization.engine import Quantized
from compiler.quantization.params import BIAS_LIMIT, bias_params
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.pursuit import pursue
from compiler.quantization.rescue.candidate import Bench, Candidate, Score
from compiler.quantization.rules import RULES, Kind
from compiler.quantization.spec import ConstantQuant, QParams, Role
from compiler.quantization.sticky_layers import (
    Layers,
    gather_layers,
    problem_of,
    rounding_noise,
    settle_means,
    spread,
)
from compiler.quantization.structure import constant_of, data_inputs, name_of, value_name
from runtimes.session import Array

LOGGER = logging.getLogger(__name__)

TOLERANCES = (0.0, 0.08, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # steps beyond half a step
SLACKS = (0.1, 0.03, 0.01, 0.003)  # a kept range may miss this share of the new one
WASTE = 3.0  # and waste this many times as much
ALLOWED_LOSS_DB = 1.0  # of signal to noise against the fresh quantization of the same model
CLIPPING = 0.2  # weights gain less from a kept scale: it may miss this share of the slack
HELD_CLIPPING = 0.5  # steps that the largest weight of a channel may lose where its codes are pursued
LEAST_PEAK = 100  # of 127 steps that it has to reach
WORTH_PURSUING = 0.005  # share of codes that changed
# Per bit, in shares of the noise that quantizing afresh makes at a layer's output; the highest first.
PRICES = (5e-4, 2.5e-4, 1.2e-4, 6e-5, 3e-5, 1.5e-5, 8e-6, 4e-6)
BIAS_SHARE = 0.25  # a bias moves an output; it may be off by this share of ``tolerance`` output steps


@dataclass(frozen=True, slots=True)
class Sticking:
    """One attempt and what it gave. ``kept_*`` are shares of all scales and codes that equal the previous release's.

    ``price``: per bit, where codes were pursued; None where a tolerance was all.
    """

    tolerance: float
    slack: float
    score: Score
    kept_scales: float
    kept_codes: float
    accepted: bool
    price: float | None = None


@dataclass(frozen=True, slots=True)
class Sticky:
    """``chosen`` is None where nothing was accepted: the fresh quantization stands. ``how`` is the attempt that gave it."""

    chosen: Quantized | None
    how: Sticking | None
    fresh: Score
    attempts: tuple[Sticking, ...]


def stick(
    fresh: Quantized,
    reference: ir.Model,
    previous: Numbers,
    options: QuantizeOptions,
    bench: Bench,
    *,
    allowed_loss_db: float = ALLOWED_LOSS_DB,
) -> Sticky:
    """Keep as much of ``previous`` as ``allowed_loss_db`` permits.

    Args:
        fresh: the quantization without regard to the past; its codes are what sticky ones are held against where they were
            not made by rounding to nearest (second-order rounding, corrected biases).
        reference: the float hub that ``fresh`` was made from.
        bench: held-out samples, and the new float model's answers to them.
    """
    search = _Search(fresh, reference, previous, options, bench, allowed_loss_db)
    # Half of the loss is left for the codes, which are most of an update; where that is too little, ranges may take all of it.
    slack = next((s for s in SLACKS if search.accepts(0.0, s, share=0.5)), search.how.slack if search.how else None)
    if slack is not None:
        low, high = 0, len(TOLERANCES)  # TOLERANCES[low] is accepted; more tolerance never helps
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if search.accepts(TOLERANCES[middle], slack) else (low, middle)
    if search.how is None or search.how.kept_codes < 1 - WORTH_PURSUING:
        search.pursue_codes()
    return Sticky(search.best, search.how, search.fresh_score, tuple(search.attempts))


class _Search:
    """Tries tolerances and prices, and holds the accepted attempt that keeps most codes."""

    def __init__(
        self,
        fresh: Quantized,
        reference: ir.Model,
        previous: Numbers,
        options: QuantizeOptions,
        bench: Bench,
        allowed_loss_db: float,
    ) -> None:
        self.best: Quantized | None = None
        self.how: Sticking | None = None
        self.attempts: list[Sticking] = []
        self.fresh_score = bench.score(fresh.model)
        self._inputs = fresh, reference, previous
        self._options, self._bench, self._allowed = options, bench, allowed_loss_db

    def accepts(self, tolerance: float, slack: float, share: float = 1.0) -> bool:
        """Whether a tolerance loses at most ``share`` of what is allowed."""
        keeper = _Keeper(*self._inputs, tolerance, slack)
        return self._judge(keeper, keeper.candidate(self._options), share)

    def pursue_codes(self) -> None:
        """Look for the highest price that is accepted."""
        layers = gather_layers(self._inputs[0], self._inputs[1], self._options, self._bench)
        low, high = -1, len(PRICES)  # prices above ``low`` are still open, ``high`` is accepted (or the end)
        while high - low > 1:
            middle = (low + high) // 2
            keeper = _Keeper(*self._inputs, 0.0, SLACKS[-1], layers, PRICES[middle])
            made = settle_means(keeper.candidate(self._options), layers, self._bench)
            low, high = (low, middle) if self._judge(keeper, made, 1.0) else (middle, high)

    def _judge(self, keeper: _Keeper, candidate: Candidate, share: float) -> bool:
        tolerance, slack, price = keeper.asked
        made = candidate.quantized()
        found = self._bench.score(made.model)
        lost = self.fresh_score.sqnr_db - found.sqnr_db
        accepted = lost <= self._allowed and not _answers_lost(found, self.fresh_score)
        how = Sticking(tolerance, slack, found, keeper.scales.share, keeper.codes.share, accepted, price)
        self.attempts.append(how)
        LOGGER.info("kept %.1f %% of codes at %s, %.2f dB lost", 100 * how.kept_codes, price or tolerance, lost)
        if accepted and (self.how is None or how.kept_codes >= self.how.kept_codes):
            self.best, self.how = made, how
        return accepted and lost <= share * self._allowed


def _answers_lost(found: Score, fresh: Score) -> bool:
    """More than one sample's answer worse than the fresh quantization's."""
    return (fresh.agreement or 0.0) - (found.agreement or 0.0) > 1.0 / fresh.samples + 1e-9


@dataclass(slots=True)
class _Share:
    kept: int = 0
    total: int = 0

    def count(self, same: Array | bool) -> None:
        self.kept += int(np.sum(same))
        self.total += int(np.size(same))

    @property
    def share(self) -> float:
        return self.kept / self.total if self.total else 0.0


class _Keeper:
    """Makes the candidate of one tolerance."""

    def __init__(
        self,
        fresh: Quantized,
        reference: ir.Model,
        previous: Numbers,
        tolerance: float,
        slack: float,
        layers: Layers | None = None,
        price: float | None = None,
    ) -> None:
        self.scales, self.codes = _Share(), _Share()
        self.asked = tolerance, slack, price
        self._layers, self._price = layers, price
        self._biases: dict[str, tuple[QParams, Array]] = {}  # of layers whose codes were pursued
        self._fresh, self._reference, self._previous = fresh, reference, previous
        self._tolerance, self._slack = tolerance, slack
        self._nodes = {name_of(node): node for node in reference.graph}
        self._stored = {name_of(node): node for node in fresh.model.graph}

    def candidate(self, options: QuantizeOptions) -> Candidate:
        fresh = self._fresh.spec.activations
        activations = {name: self._activation(name, params) for name, params in fresh.items()}
        self._follow_ties(activations)
        for name, params in activations.items():
            self.scales.count(self._previous.activations.get(name) == params)
        overrides: dict[tuple[str, int], Array] = {}
        constants: list[ConstantQuant] = []
        for constant in self._fresh.spec.constants:
            params, codes = self._constant(constant, activations, constants)
            constants.append(replace(constant, params=params))
            overrides[constant.node, constant.index] = params.dequantize(codes)
        spec = replace(self._fresh.spec, activations=activations, constants=tuple(constants))
        return Candidate(self._reference, spec, self._fresh.calibration, options, overrides)

    def _activation(self, name: str, fresh: QParams) -> QParams:
        old = self._previous.activations.get(name)
        return old if old is not None and _covers(old, fresh, self._slack) else fresh

    def _follow_ties(self, activations: dict[str, QParams]) -> None:
        """What shares its numbers with a same-scale neighbour goes on sharing them; in artifacts some go by one name only."""
        groups: dict[str, list[str]] = {}
        for one, other in self._tied_pairs():
            merged = list(dict.fromkeys([*groups.get(one, [one]), *groups.get(other, [other])]))
            groups.update(dict.fromkeys(merged, merged))
        fresh = self._fresh.spec.activations
        for group in {id(members): members for members in groups.values()}.values():
            kept = next((activations[n] for n in group if activations[n] != fresh[n]), fresh[group[0]])
            activations.update(dict.fromkeys(group, kept))

    def _tied_pairs(self) -> Iterator[tuple[str, str]]:
        fresh = self._fresh.spec.activations
        for node in self._reference.graph:
            rule = RULES.get(node.op_type)
            if rule is None or rule.kind is not Kind.SAME_SCALE:
                continue
            output = node.outputs[0].name or ""
            names = [value.name or "" for _, value in data_inputs(node)]
            names += [value.name or "" for value in node.outputs[1:]]
            yield from ((output, n) for n in names if output in fresh and n in fresh and fresh[n] == fresh[output])

    def _constant(
        self, constant: ConstantQuant, activations: dict[str, QParams], done: list[ConstantQuant]
    ) -> tuple[QParams, Array]:
        """The parameters and codes of one constant; a bias comes after its node's weight."""
        node = self._nodes[constant.node]
        wanted = self._wanted(node, constant)
        if constant.role is Role.BIAS:
            if constant.node in self._biases:
                return self._biases[constant.node]
            return self._bias(node, constant, wanted, activations, done[-1].params)
        if constant.role is Role.WEIGHT:
            pursued = self._pursued(node, constant, activations)
            return pursued or self._weight(_source_name(node, constant.index), constant.params, wanted)
        return self._operand(node, constant, wanted, activations)

    def _wanted(self, node: ir.Node, constant: ConstantQuant) -> Array:
        """The value to come near: the float one where it was rounded to nearest, else what was made of it."""
        codes = self._stored_codes(constant)
        exact = constant_of(node.inputs[constant.index]) if constant.index < len(node.inputs) else None
        if exact is not None and exact.shape == codes.shape and np.array_equal(constant.params.quantize(exact), codes):
            return exact
        return constant.params.dequantize(codes)

    def _pursued(
        self, node: ir.Node, constant: ConstantQuant, activations: dict[str, QParams]
    ) -> tuple[QParams, Array] | None:
        """A layer's codes with few changes, its bias put aside in ``_biases``; None where that is not asked or not possible."""
        exact, old = constant_of(node.inputs[1]), self._previous.constants.get(_source_name(node, 1))
        if self._layers is None or self._price is None or constant.node not in self._layers.hessians:
            return None
        if old is None or exact is None or old.codes.shape != exact.shape or old.params.axis != constant.params.axis:
            return None
        peak = _peaks(exact, constant.params) / old.params.scale
        kept = (peak <= constant.params.qmax + 0.5 + HELD_CLIPPING) & (peak >= LEAST_PEAK)
        params = replace(constant.params, scale=np.where(kept, old.params.scale, constant.params.scale))
        bias = self._bias_to_pursue(node, params, activations)
        hessian = self._layers.hessians[constant.node]
        problem = problem_of(node, hessian, (exact, old.codes, params, kept), bias)
        noise = rounding_noise(problem, self._output_step(node, activations))
        found = pursue(problem, self._price * noise)
        if bias is not None:
            codes = found[:, :, -1].reshape(-1).astype(np.int32)
            self.codes.count(codes == bias[1])
            self._biases[constant.node] = bias[2], codes
            found = found[:, :, :-1]
        weight = self._layers.restored(constant.node, found)
        self.scales.count(kept)
        self.codes.count(weight == old.codes)
        return params, weight

    def _bias_to_pursue(
        self, node: ir.Node, weight: QParams, activations: dict[str, QParams]
    ) -> tuple[Array, Array, QParams] | None:
        """What a bias should be, what its old codes become under the new scale, and that; None where it is left to itself."""
        constant = next((c for c in self._fresh.spec.constants if (c.node, c.role) == (name_of(node), Role.BIAS)), None)
        old = self._previous.biases.get(_source_name(node, 1))
        if constant is None or old is None:
            return None
        wanted = self._wanted(node, constant)
        source = node.inputs[0]
        assert source is not None
        params = bias_params(float(activations[value_name(source)].scale[0]), weight)
        if old.codes.shape != wanted.shape or np.abs(wanted / params.scale).max(initial=0.0) >= BIAS_LIMIT:
            return None
        return wanted, params.quantize(old.params.dequantize(old.codes)), params

    def _stored_codes(self, constant: ConstantQuant) -> Array:
        value = self._stored[constant.node].inputs[constant.index]
        producer = value.producer() if value is not None else None
        codes = constant_of(producer.inputs[0]) if producer is not None else None
        assert codes is not None, f"{constant.node} has no codes at input {constant.index}"
        return codes

    def _weight(self, name: str, fresh: QParams, wanted: Array) -> tuple[QParams, Array]:
        old = self._previous.constants.get(name)
        if old is None or old.codes.shape != wanted.shape or old.params.axis != fresh.axis:
            self.scales.count(np.zeros(len(fresh.scale), bool))
            return fresh, fresh.quantize(wanted)
        peak = _peaks(wanted, fresh)
        reached = old.params.scale * ((fresh.qmax + 0.5) * (1 + CLIPPING * self._slack))
        kept = (peak <= reached) & (old.params.scale <= fresh.scale * (1 + WASTE * self._slack))
        self.scales.count(kept)
        params = replace(fresh, scale=np.where(kept, old.params.scale, fresh.scale))
        return params, self._sticky_codes(wanted, params, old, kept, self._tolerance)

    def _sticky_codes(self, wanted: Array, params: QParams, old: Codes, kept: Array, reach: float | Array) -> Array:
        """Old codes wherever their scale was kept and the value lies within half a step plus ``reach`` of them."""
        nearest = params.quantize(wanted)
        steps = wanted.astype(np.float64) / spread(params.scale, params, wanted.ndim) + params.zero_point
        near = np.abs(steps - old.codes) <= 0.5 + reach
        same = near & spread(kept, params, wanted.ndim)
        self.codes.count(same)
        return np.where(same, old.codes, nearest).astype(nearest.dtype)

    def _bias(
        self,
        node: ir.Node,
        constant: ConstantQuant,
        wanted: Array,
        activations: dict[str, QParams],
        weight: QParams,
    ) -> tuple[QParams, Array]:
        source = node.inputs[0]
        assert source is not None
        scale_in = float(activations[value_name(source)].scale[0])
        params = bias_params(scale_in, weight)
        if np.abs(wanted / spread(params.scale, params, 1)).max(initial=0.0) >= BIAS_LIMIT:
            params = constant.params  # kept scales too fine for this bias: the rare case that is not worth more
        old = self._previous.biases.get(_source_name(node, 1))
        if old is None or old.codes.shape != wanted.shape or old.params.axis != params.axis:
            return params, params.quantize(wanted)
        kept = old.params.scale == params.scale
        step = self._output_step(node, activations)
        reach = self._tolerance * BIAS_SHARE * step / spread(params.scale, params, 1)
        return params, self._sticky_codes(wanted, params, old, kept, reach)

    def _output_step(self, node: ir.Node, activations: dict[str, QParams]) -> float:
        """The scale of what the node's result is rounded to, 0 where it stays in float."""
        fused = self._fresh.spec.nodes[name_of(node)].fused_into
        params = activations.get(fused or value_name(node.outputs[0]))
        return float(params.scale[0]) if params is not None else 0.0

    def _operand(
        self, node: ir.Node, constant: ConstantQuant, wanted: Array, activations: dict[str, QParams]
    ) -> tuple[QParams, Array]:
        output = value_name(node.outputs[0])
        if self._fresh.spec.activations.get(output) == constant.params:
            params = activations[output]  # bound to the output's scale
        else:
            params = constant.params
        old = self._previous.constants.get(_source_name(node, constant.index))
        if old is None or old.codes.shape != wanted.shape or old.params.axis is not None:
            return params, params.quantize(wanted)
        if params is constant.params and _covers(old.params, params, self._slack):
            params = old.params
        same = np.array([params.scale[0] == old.params.scale[0] and params.zero_point == old.params.zero_point])
        return params, self._sticky_codes(wanted, params, old, same, self._tolerance)


def _covers(old: QParams, fresh: QParams, slack: float) -> bool:
    """Whether the old range misses little of the new one on either side, and is not much wider."""
    width = fresh.high - fresh.low
    missed = max(old.low - fresh.low, fresh.high - old.high)
    wasted = max(fresh.low - old.low, old.high - fresh.high)
    return missed <= slack * width and wasted <= WASTE * slack * width


def _source_name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    assert value is not None
    return value_name(value)


def _peaks(values: Array, params: QParams) -> Array:
    """max|w| per scale."""
    if params.axis is None:
        return np.array([np.abs(values).max(initial=0.0)])
    others = tuple(a for a in range(values.ndim) if a != params.axis % values.ndim)
    return np.asarray(np.abs(values).max(axis=others, initial=0.0))
