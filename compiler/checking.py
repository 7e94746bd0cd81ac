"""Verification of a whole build: every artifact executed against the source, int8 artifacts against each other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from compiler.exporters.base import CoreMLInterface
from compiler.gates import Gate, half_gate, lowering_gate
from compiler.hub import Imported
from compiler.hub_session import open_hub
from compiler.hubfacts import hub_inputs, index_limit, output_scales, quantized_range
from compiler.progress import Progress
from compiler.request import Data
from compiler.stages import Exported, Shaped
from compiler.variants import Variant
from compiler.verification.diverging import first_diverging
from compiler.verification.half_bound import HalfBound, half_bound
from compiler.verification.metrics import StepAgreement, parity, step_agreement
from compiler.verification.sizes import check_sizes
from compiler.verification.verify import Truth, Verified, verify_artifact
from profiles.schema import Format, Precision
from runtimes.errors import ChildFailed, RuntimeFailure
from runtimes.preprocess import ImageInput, prepare_pixels
from runtimes.session import Array, TensorSpec, run_dataset

# LiteRT's 16x8 kernels keep 15 bits of every multiplier (MultiplyByQuantizedMultiplier for int64 in kernels/internal/common.h), so
# each layer may be off by a code or two of 65,536; a step of 32 codes is an eighth of int8's.
CODES_PER_STEP = {Precision.INT8: 1, Precision.INT16X8: 32}
EVALUATION_LIMIT = 4096  # samples executed per artifact; the reference evaluator sets the pace
RANDOM_SAMPLES = 8
QUANTIZED_RANDOM_SAMPLES = (
    64  # of a source that came quantized: its artifacts are compared step by step, which needs more
)


@dataclass(frozen=True, slots=True)
class Checked:
    """What verification found: the truth, each artifact's evidence, and how far int8 artifacts are apart.

    ``sizes``: by artifact with flexible sizes, the largest error at the ends of what it takes, and a sentence that says where.
    ``diverging``: by Core ML artifact that does not compute what its hub does, the first tensor that parts from it.
    ``halves``: by Core ML artifact that computes in float16, what its roundings may add up to.
    """

    truth: Truth
    truth_kind: str
    verified: tuple[Verified, ...]
    lowering: tuple[Verified, ...]
    agreement: tuple[StepAgreement, ...]
    sizes: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    diverging: Mapping[str, str] = field(default_factory=dict)
    halves: Mapping[str, HalfBound] = field(default_factory=dict)


def verify_all(
    exported: Sequence[Exported],
    shaped: Shaped,
    imported: Imported,
    data: Data,
    progress: Progress,
    interface: CoreMLInterface | None = None,
    batches: tuple[int, ...] = (),
) -> Checked:
    """Execute every artifact on its runtime, in a child process each, against the source's outputs.

    ``batches``: sizes at which artifacts that take any are run in turn, and the source where it takes any too.
    """
    truth, kind = _truth(imported, data, shaped.floating, batches)
    hubs = _hub_truths(truth, shaped, [item.variant.precision for item in exported])
    verified, lowering = [], []
    diverging: dict[str, str] = {}
    halves: dict[str, HalfBound] = {}
    with progress.stage("verify", len(exported)) as advance:
        for done, item in enumerate(exported, 1):
            found = _verify(item, truth)
            verified.append(found)
            ordered = {n: found.execution.outputs[n] for n in truth.outputs}
            lowering.append(replace(found, parity=parity(ordered, hubs[item.variant.precision])))
            halves |= _halves(item, truth, ordered, hubs[item.variant.precision])
            diverging |= _diverging(item, shaped, truth, lowering[-1], halves)
            advance(done)
    pairs = _agreements(exported, verified, shaped)
    sizes = _sizes(exported, shaped, interface)
    return Checked(truth, kind, tuple(verified), tuple(lowering), pairs, sizes, diverging, halves)


def parity_gate(name: str, variant: Variant, lowered: Verified, halves: Mapping[str, HalfBound]) -> Gate | None:
    """Whether the artifact computes what its hub computes; None where it computes in integers."""
    if name in halves:
        return half_gate(name, halves[name])
    return lowering_gate(name, variant.precision, lowered.parity, variant.half)


def _halves(item: Exported, truth: Truth, got: Mapping[str, Array], want: Mapping[str, Array]) -> dict[str, HalfBound]:
    """What float16's roundings may do to a Core ML artifact that computes in it, by its name; empty for others."""
    variant = item.variant
    if variant.format is not Format.COREML or not (variant.precision is Precision.FP16 or variant.half):
        return {}
    return {item.result.path.name: half_bound(item.result.path, truth.feeds, got, want, truth.batch or 1)}


def _diverging(
    item: Exported, shaped: Shaped, truth: Truth, lowered: Verified, halves: Mapping[str, HalfBound]
) -> dict[str, str]:
    """Where a Core ML artifact that fails its parity gate first leaves its hub, by its name; empty for others."""
    variant, name = item.variant, item.result.path.name
    gate = parity_gate(name, variant, lowered, halves)
    if gate is None or gate.ok or variant.format is not Format.COREML:
        return {}
    model = shaped.model(variant.precision)
    rows = {spec.name: (spec.shape[0] if spec.shape else None) or truth.batch or 1 for spec in hub_inputs(model)}
    feeds = {key: np.asarray(feed[: rows[key]] if feed.ndim else feed) for key, feed in truth.feeds.items()}
    first = first_diverging(item.result.path, model, feeds, gate.limit)
    return {name: f"First of all, {first}." if first else "Each tensor of the first sample is within it."}


def _sizes(
    exported: Sequence[Exported], shaped: Shaped, interface: CoreMLInterface | None
) -> dict[str, tuple[float, str]]:
    """Each Core ML artifact at the ends of its flexible sizes, against the hub that it was lowered from."""
    if interface is None or not interface.flexible:
        return {}
    flexible = [item for item in exported if item.variant.format is Format.COREML]
    return {
        item.result.path.name: check_sizes(item.result.path, shaped.model(item.variant.precision), interface)
        for item in flexible
    }


def _verify(item: Exported, truth: Truth) -> Verified:
    # A profile may name Core ML, which runs on Apple systems only: take the best runtime for the format that is here.
    runtime = None if item.variant.format is Format.COREML else item.variant.runtime
    try:
        integers = item.variant.format is Format.ONNX and not item.variant.precision.is_float
        return verify_artifact(item.result.path, runtime, truth, kernels=integers)
    except RuntimeFailure as error:
        raise ChildFailed(
            f"{item.result.path.name} could not be verified: {error.message}", remedy=error.remedy
        ) from error


def _truth(imported: Imported, data: Data, hub: ir.Model, batches: tuple[int, ...]) -> tuple[Truth, str]:
    batch, evaluation = _batch(hub), data.evaluation
    where = f", at batch sizes {', '.join(map(str, sorted(batches)))}" if batches else ""
    if evaluation is None:
        ranges = {spec.name: quantized_range(imported.model, spec.name) for spec in hub_inputs(hub)}
        samples = QUANTIZED_RANDOM_SAMPLES if any(ranges.values()) else RANDOM_SAMPLES
        feeds = {
            spec.name: _random(spec, samples, index_limit(hub, spec.name), ranges[spec.name])
            for spec in hub_inputs(hub)
        }
        pictures = {name: one for name, one in data.preprocessing.items() if isinstance(one, ImageInput)}
        feeds |= {name: _random_pictures(one, samples) for name, one in pictures.items() if name in feeds}
        outputs = run_dataset(imported.reference, feeds, batches or batch)
        return Truth(feeds, outputs, None, batch, batches), f"{samples} random samples (seed 0){where}"
    few = evaluation.take(EVALUATION_LIMIT) if evaluation.count > EVALUATION_LIMIT else evaluation
    outputs = run_dataset(imported.reference, few.feeds, batches or batch)
    return Truth(few.feeds, outputs, few.labels, batch, batches), f"{few.count} samples of the given data{where}"


def _batch(hub: ir.Model) -> int | None:
    """The hub's batch size, at which the source is asked too: outputs need not have a batch axis, and onnxruntime's kernels
    for larger batches round otherwise (magika: 1.6e-3 between batch 1 and 32)."""
    return next((spec.shape[0] for spec in hub_inputs(hub) if spec.shape), None)


def _random(spec: TensorSpec, samples: int, limit: int, within: tuple[float, float] | None) -> Array:
    """Standard normal floats, or evenly spread where the source says in which range; integers below ``limit``."""
    rng = np.random.default_rng(0)
    size = (samples * (spec.shape[0] or 1) if spec.shape else 1, *(d or 1 for d in spec.shape[1:]))
    if within is not None:
        return rng.uniform(*within, size).astype(spec.dtype)
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return rng.standard_normal(size).astype(spec.dtype)
    return rng.integers(0, limit, size).astype(spec.dtype)


def _random_pictures(declared: ImageInput, samples: int) -> Array:
    """What the declaration makes of random pixels: an artifact may take the pixels themselves."""
    shape = (samples, declared.height, declared.width, declared.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.concatenate([prepare_pixels(declared, one) for one in pixels])


def _hub_truths(truth: Truth, shaped: Shaped, precisions: Sequence[Precision]) -> dict[Precision, dict[str, Array]]:
    """Per precision, the outputs of the model that its artifacts were lowered from.

    That is the float hub, pruned where asked, and the quantized hub where only weights were compressed: such an artifact computes
    in float what that hub computes. With integer activations the rounding is the kernels' own.
    """
    floating = _run_hub(shaped.floating, truth) if shaped.prune else truth.outputs
    outputs = dict.fromkeys(precisions, floating)
    for precision in (p for p in outputs if p.weights_only):
        outputs[precision] = _run_hub(shaped.quantized[precision], truth)
    return outputs


def _run_hub(model: ir.Model, truth: Truth) -> dict[str, Array]:
    with open_hub(model) as session:
        return run_dataset(session, truth.feeds, _batch(model))


def _agreements(
    exported: Sequence[Exported], verified: Sequence[Verified], shaped: Shaped
) -> tuple[StepAgreement, ...]:
    """Every pair of artifacts of one precision with integer activations, in steps of the quantized outputs' scales."""
    pairs: list[StepAgreement] = []
    for precision, codes in CODES_PER_STEP.items():
        scales = output_scales(shaped.quantized[precision]) if precision in shaped.quantized else {}
        alike = [
            (item.result.path.name, found.execution.outputs)
            for item, found in zip(exported, verified, strict=True)
            if item.variant.precision is precision and scales
        ]
        pairs += [step_agreement(a, b, scales, codes) for a, b in itertools.combinations(alike, 2)]
    return tuple(pairs)
