"""The rescue ladder: ways to win back what int8 lost, each kept only if it helps on samples that calibration did not see.

Rungs, cheap ones first: better ranges -> better weight scales -> cross-layer equalization -> bias correction, layer after layer ->
float for the nodes that cost most, measured one at a time. The best found so far is always the result; every rung that was tried
is in the table.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import Dataset, content_digest
from compiler.hub_session import open_hub
from compiler.passes.edit import add_initializer
from compiler.quantization.engine import Quantized, Quantizer
from compiler.quantization.equalize import equalize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rules import RULES, Kind
from compiler.quantization.spec import NodePrecision
from compiler.quantization.structure import constant_of, name_of, value_name
from runtimes.session import Array, run_dataset

LOGGER = logging.getLogger(__name__)

HELD_SHARE, HELD_MOST = 0.25, 64
CORRECTION_SAMPLES = 32
RANGE_SAMPLES = 128  # for the ranges while correcting: each layer calibrates anew
MIN_GAIN_DB = 0.1  # less is noise between two sets of samples
MAX_FLOAT_SHARE = 0.1  # of the multiplications: beyond, the model is int8 in name only
MAX_FLOAT_NODES = 4
BIASED = {"Conv": 2, "Gemm": 2, "ConvTranspose": 2}  # operator -> position of its bias


@dataclass(frozen=True, slots=True)
class Rung:
    """One attempt on the held-out samples.

    ``sqnr_db`` is that of the worst output. ``agreement`` is the share of samples whose largest element of the first output is the
    float model's; None for outputs that are no scores. ``float_share`` of all multiplications run in float.
    """

    name: str
    sqnr_db: float
    agreement: float | None
    float_share: float
    kept: bool
    note: str


@dataclass(frozen=True, slots=True)
class Climb:
    """The best quantization and how it was found. ``held_out``: samples that judged, not used otherwise unless there are few."""

    best: Quantized
    rungs: tuple[Rung, ...]
    held_out: int


Progress = Callable[[str], None]


def climb(
    model: ir.Model,
    dataset: Dataset,
    options: QuantizeOptions,
    quantizer: Quantizer,
    progress: Progress | None = None,
) -> Climb:
    """Quantize by every rung that helps.

    Args:
        model: a float hub; it is not modified.
        dataset: samples; a quarter of them (at most 64) is held out. Below eight samples all serve both purposes.
        options: where to start.
        quantizer: the engine of each attempt.

    Raises:
        DataError: see the quantizer.
    """
    climber = _Climber(model, *_split(dataset), options, quantizer, progress or (lambda line: None))
    climber.run()
    assert climber.best is not None
    return Climb(climber.best, tuple(climber.rungs), climber.held.count)


def _split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    held = min(HELD_MOST, int(dataset.count * HELD_SHARE))
    if dataset.count < 8:
        return dataset, dataset
    feeds = [
        {name: array[part] for name, array in dataset.feeds.items()} for part in (slice(0, -held), slice(-held, None))
    ]
    used, kept = (Dataset(f, None, content_digest(f, None), dataset.batch) for f in feeds)
    return used, kept


class _Climber:
    def __init__(
        self,
        model: ir.Model,
        used: Dataset,
        held: Dataset,
        options: QuantizeOptions,
        quantizer: Quantizer,
        progress: Progress,
    ) -> None:
        self.model, self.used, self.held = model, used, held
        self.options, self.quantizer, self.progress = options, quantizer, progress
        self.rungs: list[Rung] = []
        self.best: Quantized | None = None
        self.score = -math.inf
        self.source = model  # the float hub whose constants are quantized: bias correction changes it
        with open_hub(model) as session:
            self.truth = run_dataset(session, held.feeds)
        self.macs = {name_of(node): _multiplications(node) for node in model.graph}

    def run(self) -> None:
        self.attempt("as asked", self.options)
        for observer in ("mse", "percentile", "min-max"):
            if observer != self.options.observer:
                self.attempt(f"ranges: {observer}", replace(self.options, observer=observer))
        if self.options.weights != "mse":
            self.attempt("weight scales: mse", replace(self.options, weights="mse"))
        equalized, pairs = equalize(self.source)
        if pairs:
            self.attempt("cross-layer equalization", self.options, equalized, f"{pairs} pairs of convolutions")
        self._correct_biases()
        self._free_the_costliest()

    def attempt(self, name: str, options: QuantizeOptions, source: ir.Model | None = None, note: str = "") -> float:
        """Quantize, judge, keep if better by more than noise. Returns the SQNR."""
        source = source or self.source
        found = self.quantizer(source, self.used, options)
        sqnr, agreement = self._judge(found.model)
        kept = self.best is None or sqnr > self.score + MIN_GAIN_DB
        if kept:
            self.best, self.score, self.options, self.source = found, sqnr, options, source
        self.rungs.append(Rung(name, sqnr, agreement, self._float_share(found), kept, note))
        self.progress(f"{name}: {sqnr:.1f} dB{' (kept)' if kept else ''}")
        return sqnr

    def _judge(self, model: ir.Model) -> tuple[float, float | None]:
        with open_hub(model) as session:
            found = run_dataset(session, self.held.feeds)
        sqnr = min(_sqnr_db(want, found[name]) for name, want in self.truth.items())
        first = next(iter(self.truth))
        want = self.truth[first]
        if want.ndim != 2 or want.shape[1] < 2:
            return sqnr, None
        return sqnr, float((want.argmax(1) == found[first].argmax(1)).mean())

    def _float_share(self, found: Quantized) -> float:
        total = sum(self.macs.values())
        free = sum(self.macs.get(name, 0) for name in found.spec.float_nodes)
        return free / total if total else 0.0

    # ------------------------------------------------------------------ bias correction

    def _correct_biases(self) -> None:
        """Empirical, sequential (Nagel et al. 2019, section 4.2): per channel, what int8 adds on average is taken off the bias."""
        assert self.best is not None
        corrected = self.source.clone()
        changed = 0
        for name in [name_of(node) for node in self._int8_nodes(corrected) if node.op_type in BIASED]:
            node = next(n for n in corrected.graph if name_of(n) == name)
            shift = self._mean_error(corrected, value_name(node.outputs[0]))
            if shift is not None and _move_bias(corrected.graph, node, -shift):
                changed += 1
        if changed:
            self.attempt("bias correction", self.options, corrected, f"{changed} biases moved")

    def _mean_error(self, corrected: ir.Model, value: str) -> Array | None:
        """[channels]: mean over samples and positions of (int8 - float), with all earlier corrections in place.

        Float is the best source so far, not the model: equalization has changed the values between.
        """
        coded = self.quantizer(corrected, self.used.take(RANGE_SAMPLES), self.options).model
        few = self.used.take(CORRECTION_SAMPLES)
        total, count = None, 0
        with open_hub(self.source, taps=[value]) as plain, open_hub(coded, taps=[value]) as quantized:
            for feeds in few.batches():
                error = quantized.run(feeds)[value].astype(np.float64) - plain.run(feeds)[value]
                axes = tuple(axis for axis in range(error.ndim) if axis != 1)
                total = error.mean(axis=axes) + (0 if total is None else total)
                count += 1
        return None if total is None else np.asarray(total / count, np.float32)

    # ------------------------------------------------------------------ mixed precision

    def _free_the_costliest(self) -> None:
        """Float for few nodes: each is freed alone, then the best by gain per multiplication are freed together."""
        assert self.best is not None
        base, total = self.score, sum(self.macs.values()) or 1
        gains: list[tuple[float, str]] = []
        for node in self._int8_nodes(self.source):
            name = name_of(node)
            if self.macs[name] / total > MAX_FLOAT_SHARE:
                continue
            found = self.quantizer(self.source, self.used, replace(self.options, keep_float=self._with(name)))
            gain = self._judge(found.model)[0] - base
            if gain > MIN_GAIN_DB:
                gains.append((gain / (0.01 + self.macs[name] / total), name))
        chosen: list[str] = []
        for _, name in sorted(gains, reverse=True)[:MAX_FLOAT_NODES]:
            share = sum(self.macs[n] for n in [*chosen, name]) / total
            if share <= MAX_FLOAT_SHARE:
                chosen.append(name)
        if chosen:
            self.attempt("float nodes", replace(self.options, keep_float=self._with(*chosen)), note=", ".join(chosen))

    def _with(self, *names: str) -> tuple[str, ...]:
        return tuple(sorted({*self.options.keep_float, *names}))

    def _int8_nodes(self, model: ir.Model) -> Iterator[ir.Node]:
        """Weighted nodes that the best spec has in int8, in graph order."""
        assert self.best is not None
        decisions = self.best.spec.nodes
        for node in model.graph:
            rule = RULES.get(node.op_type)
            weighted = rule is not None and rule.kind is Kind.WEIGHTED
            if weighted and decisions[name_of(node)].precision is NodePrecision.INT8:
                yield node


def _sqnr_db(want: Array, found: Array) -> float:
    wide = want.astype(np.float64)
    signal, noise = float((wide**2).sum()), float(((wide - found) ** 2).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _multiplications(node: ir.Node) -> int:
    """Of a node with a constant weight: output elements times the weight's elements per output channel."""
    weight = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = node.outputs[0].shape
    if node.op_type not in (*BIASED, "MatMul") or weight is None or shape is None:
        return 0
    outputs = math.prod(size for size in shape if isinstance(size, int))
    channels = weight.shape[0] if node.op_type == "Conv" else weight.shape[-1]
    return int(outputs * (weight.size // max(1, channels)))


def _move_bias(graph: ir.Graph, node: ir.Node, shift: Array) -> bool:
    """Add ``shift`` ([channels]) to the node's bias, giving it one if it has none. False where it is no plain vector."""
    position = BIASED[node.op_type]
    value = node.inputs[position] if len(node.inputs) > position else None
    bias = constant_of(value)
    if value is not None and (bias is None or bias.reshape(-1).shape != shift.shape):
        return False
    moved = (shift if bias is None else bias.reshape(-1) + shift).astype(np.float32)
    fresh = add_initializer(graph, f"{name_of(node)}/corrected_bias", moved)
    if len(node.inputs) <= position:
        node.resize_inputs(position + 1)
    node.replace_input_with(position, fresh)
    return True


def table(rungs: Sequence[Rung]) -> list[dict[str, object]]:
    """The rungs as the report's section holds them."""
    return [
        {
            "rung": rung.name,
            "sqnr_db": rung.sqnr_db if math.isfinite(rung.sqnr_db) else None,
            "agreement": rung.agreement,
            "float_share": rung.float_share,
            "kept": rung.kept,
            "note": rung.note,
        }
        for rung in rungs
    ]
