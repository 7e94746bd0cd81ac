"""One way to quantize a model, and what it scores on samples that it was not made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from compiler.calibration.collect import Calibration, collect
from compiler.calibration.dataset import Dataset
from compiler.errors import DataError
from compiler.hub_session import open_hub
from compiler.passes.edit import refold
from compiler.quantization.engine import Quantized
from compiler.quantization.params import bias_params
from compiler.quantization.perform import perform
from compiler.quantization.plan import QuantizeOptions, plan
from compiler.quantization.rescue.knapsack import Sensitivity
from compiler.quantization.spec import ConstantQuant, QuantizationSpec, Role
from compiler.quantization.structure import constant_of, name_of, value_name
from compiler.verification.metrics import parity
from runtimes.session import Array, run_dataset

HELD_OUT_EVERY = 4  # every fourth sample judges, the others calibrate
FEWEST = 8

Overrides = Mapping[tuple[str, int], Array]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to quantize.

    Args:
        reference: a float hub that computes what the source computes (rungs may have rescaled it inside).
        spec, calibration, options: the decisions, and what they were made from.
        overrides: per (node, input index) a float constant that replaces the reference's in int8 nodes: weights that were
            rounded otherwise than to nearest, corrected biases.
    """

    reference: ir.Model
    spec: QuantizationSpec
    calibration: Calibration
    options: QuantizeOptions
    overrides: Overrides = field(default_factory=dict)

    def adjusted(self) -> ir.Model:
        """The float hub with the overrides in place, ready to be performed."""
        model = self.reference.clone()
        nodes = {name_of(node): node for node in model.graph}
        for (name, index), array in self.overrides.items():
            node = nodes[name]
            if len(node.inputs) <= index:
                node.resize_inputs(index + 1)
            # Under the old name where nobody else reads it, so that rescued artifacts are no larger than others.
            node.replace_input_with(index, refold(model.graph, node.inputs[index], array, f"{name}/bias"))
        return model

    def quantized(self) -> Quantized:
        return Quantized(perform(self.adjusted(), self.spec), self.spec, self.calibration)

    def weight_bytes(self) -> int:
        """Bytes of the constants as they will be stored: one per int8 weight, four per float or int32."""
        narrow = {(c.node, c.index) for c in self.spec.constants if c.role is not Role.BIAS}
        total = 0
        for node in self.reference.graph:
            for index, value in enumerate(node.inputs):
                array = constant_of(value)
                if array is not None:
                    total += array.size * (1 if (name_of(node), index) in narrow else array.itemsize)
        return total


def candidate(
    model: ir.Model, dataset: Dataset, options: QuantizeOptions, calibration: Calibration | None = None
) -> Candidate:
    """Calibrate (every activation, so that any node may later stay in float) and plan."""
    calibration = calibration or collect(model, dataset, observer=options.observer)
    return Candidate(model, plan(model, calibration, options), calibration, options)


def replanned(old: Candidate, options: QuantizeOptions) -> Candidate:
    """``old`` planned anew under ``options`` of the same observer; weights that were adjusted keep their scales."""
    overrides = {key: array for key, array in old.overrides.items() if key[0] not in options.keep_float}
    moved = replace(old, overrides=overrides, options=options)
    spec = plan(moved.adjusted(), old.calibration, options)
    sources = {name_of(node): node.inputs[0] for node in old.reference.graph if node.inputs}
    constants = []
    for one in spec.constants:
        kept = old.spec.constant(one.node, 1)
        if kept is not None and one.role is Role.WEIGHT and one.index == 1:
            one = replace(one, params=kept)
        elif kept is not None and one.role is Role.BIAS:
            source = sources[one.node]
            assert source is not None
            scale_in = float(spec.seen(one.node, value_name(source)).scale[0])
            one = ConstantQuant(one.node, one.index, one.role, bias_params(scale_in, kept))
        constants.append(one)
    return replace(moved, spec=replace(spec, constants=tuple(constants)))


@dataclass(frozen=True, slots=True)
class Score:
    """On held-out samples, against the float hub: ``sqnr_db`` of the worst output, ``agreement`` of the argmax (a share)."""

    sqnr_db: float
    agreement: float | None
    samples: int

    def better_than(self, other: Score) -> bool:
        """More signal to noise, and not more than one sample's answer worse."""
        lost = (other.agreement or 0.0) - (self.agreement or 0.0)
        return lost <= 1.0 / self.samples + 1e-9 and self.sqnr_db > other.sqnr_db


@dataclass(frozen=True, slots=True)
class Bench:
    """What rungs work with: samples to calibrate on, samples to be judged on, and the float hub's answers to the latter.

    ``sensitivity`` is where rungs put down what they measured node by node, for the report.
    """

    hub: ir.Model
    train: Dataset
    held_out: Dataset
    truth: Mapping[str, Array]
    sensitivity: list[Sensitivity] = field(default_factory=list)

    def score(self, model: ir.Model) -> Score:
        """Run a quantized hub over the held-out samples."""
        with open_hub(model) as session:
            found = parity(run_dataset(session, self.held_out.feeds), self.truth)
        return Score(found.snr_db, found.agreement, found.samples)


def too_few(dataset: Dataset) -> bool:
    """Whether none of the samples can be held out."""
    return dataset.count < max(FEWEST, HELD_OUT_EVERY * dataset.batch)


def make_bench(hub: ir.Model, dataset: Dataset) -> Bench:
    """Split ``dataset``: every fourth sample is held out.

    Raises:
        DataError: fewer than eight samples, or fewer than the model's own batch on either side.
    """
    if too_few(dataset):
        raise DataError(
            f"{dataset.count} calibration samples are too few to hold some out and judge on them.",
            remedy=f"Give at least {max(FEWEST, HELD_OUT_EVERY * dataset.batch)} samples (100 and more work better).",
        )
    judge = np.arange(dataset.count) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return judged_on(hub, *(dataset.select(np.flatnonzero(mask).tolist()) for mask in (~judge, judge)))


def judged_on(hub: ir.Model, train: Dataset, held_out: Dataset) -> Bench:
    """A bench whose ``held_out`` samples were chosen by the caller."""
    with open_hub(hub) as session:
        truth = run_dataset(session, held_out.feeds)
    return Bench(hub, train, held_out, truth)
