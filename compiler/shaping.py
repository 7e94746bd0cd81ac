"""Pruning and quantization as cached stages: a model in, a model and its section of the report out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.cache import Cache
from compiler.calibration.dataset import Dataset
from compiler.errors import DataError
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hubfacts import digest_of
from compiler.passes.serialize import from_bytes, to_bytes
from compiler.previous.numbers import read_numbers
from compiler.previous.recipe import advice
from compiler.progress import Progress
from compiler.pruning import PruneOptions, prune
from compiler.quantization.engine import QUANTIZERS, Quantized
from compiler.quantization.evidence import gather_evidence
from compiler.quantization.half_ranges import mark_float32
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import make_bench, too_few
from compiler.quantization.rescue.collapse import COLLAPSED_DB, Outcome, quantize_or_rescue
from compiler.quantization.rescue.ladder import Climb, Goals, climb
from compiler.quantization.schemes import quantize_as
from compiler.quantization.scopes import nodes_in, values_in
from compiler.quantization.sticky import ALLOWED_LOSS_DB, stick
from compiler.request import BuildRequest, Plan
from compiler.variants import strictest
from profiles.schema import Precision
from runtimes.artifact.canonical import canonical_json

EVIDENCE_SAMPLES = 16
SATURATION_LIMIT = 0.01  # of an activation's values; observers clip a ten-thousandth or so on purpose

Produce = Callable[[Callable[[int], None]], tuple[ir.Model, dict[str, Any]]]


def _stage(
    name: str, key: Any, produce: Produce, cache: Cache, scratch: Path, progress: Progress
) -> tuple[ir.Model, dict[str, Any]]:
    """Run ``produce(advance) -> (model, section)`` unless its result is cached."""
    with progress.stage(name) as advance:

        def fill(folder: Path) -> None:
            model, section = produce(advance)
            (folder / "hub.onnx").write_bytes(to_bytes(model))
            (folder / "section.json").write_bytes(canonical_json(section))

        folder, cached = cache.stage(name, key, fill, scratch)
    if cached:
        progress.note(f"{name}: result found in the cache")
    return from_bytes((folder / "hub.onnx").read_bytes()), json.loads((folder / "section.json").read_bytes())


def prune_stage(
    hub: ir.Model, data: Dataset, share: float, cache: Cache, scratch: Path, progress: Progress
) -> tuple[ir.Model, dict[str, Any]]:
    """Remove ``share`` of the channels and repair their consumers on ``data``."""
    key = [digest_of(hub), data.digest, share]

    def produce(advance: Callable[[int], None]) -> tuple[ir.Model, dict[str, Any]]:
        pruned = prune(hub, data.feeds, PruneOptions(share=share))
        return pruned.model, pruned.report()

    return _stage("prune", key, produce, cache, scratch, progress)


def quantize_stage(
    hub: ir.Model,
    data: Dataset,
    request: BuildRequest,
    plan: Plan,
    cache: Cache,
    scratch: Path,
    progress: Progress,
) -> tuple[ir.Model, dict[str, Any]]:
    """Calibrate on ``data``, plan and perform INT8, and measure what it cost node by node."""
    options = int8_options(hub, plan, request)
    goals = _goals(request, plan)
    formats = sorted({(v.format.value, v.integer_io or "", v.float_islands) for v in plan.variants})
    before = plan.previous.digest if plan.previous else None
    key = [digest_of(hub), data.digest, request.quantizer, asdict(options), asdict(goals), formats, before]

    def produce(advance: Callable[[int], None]) -> tuple[ir.Model, dict[str, Any]]:
        made = _int8(hub, data, options, goals, request.quantizer, _lowers(plan), advance)
        kept, sticky = _sticky(made.quantized, made.reference, hub, data, options, plan)
        return kept.model, _section(kept, made.reference, data) | _ladder(made.climb) | sticky

    return _stage("quantize", key, produce, cache, scratch, progress)


def _int8(
    hub: ir.Model,
    data: Dataset,
    options: QuantizeOptions,
    goals: Goals,
    quantizer: str,
    lowers: Callable[[ir.Model], str | None],
    advance: Callable[[int], None],
) -> Outcome:
    """Quantize towards ``goals``, or as plainly as the model allows where there are none."""
    if quantizer != "edgewright":
        return Outcome(QUANTIZERS.get(quantizer)(hub, data, options), hub)
    if not _worth_climbing(goals, data):
        return quantize_or_rescue(hub, data, options, lowers=lowers, advance=advance)
    climbed = climb(hub, data, options, goals, lowers=lowers, advance=advance)
    if len(climbed.attempts) == 1:  # nothing to rescue: all samples may calibrate
        return Outcome(QUANTIZERS.get(quantizer)(hub, data, options), hub, climbed)
    return Outcome(climbed.best, climbed.reference, climbed)


def scheme_stage(
    hub: ir.Model,
    data: Dataset | None,
    precision: Precision,
    plan: Plan,
    cache: Cache,
    scratch: Path,
    progress: Progress,
) -> tuple[ir.Model, dict[str, Any]]:
    """Quantize as ``precision`` asks: any integer precision but INT8, which has gates and a ladder of its own."""
    options = _options(hub, plan)
    key = [digest_of(hub), data.digest if data else None, precision.value, asdict(options)]

    def produce(advance: Callable[[int], None]) -> tuple[ir.Model, dict[str, Any]]:
        quantized = quantize_as(hub, data, precision, options)
        return quantized.model, _scheme_section(quantized)

    return _stage(f"quantize {precision.value}", key, produce, cache, scratch, progress)


def half_stage(
    hub: ir.Model, data: Dataset, cache: Cache, scratch: Path, progress: Progress
) -> tuple[ir.Model, dict[str, Any]]:
    """Mark what float16 would lose on ``data``."""

    def produce(advance: Callable[[int], None]) -> tuple[ir.Model, dict[str, Any]]:
        marked, reasons = mark_float32(hub, data)
        types = {str(node.name): node.op_type for node in hub.graph}
        section = {
            "scheme": "float16, with float32 where the calibration data shows overflow, underflow or cancellation",
            "nodes_float": {name: f"{types[name]}: {reason}" for name, reason in reasons.items()},
            "notes": [],
        }
        return marked, section

    return _stage("ranges for float16", [digest_of(hub), data.digest], produce, cache, scratch, progress)


def int8_options(hub: ir.Model, plan: Plan, request: BuildRequest) -> QuantizeOptions:
    """What the profiles' rules, the recipe and the request ask of the quantizer at INT8. Raises DataError for empty scopes."""
    base, recipe = _options(hub, plan), plan.recipe
    floating, wide = plan.scopes(request)
    values = values_in(hub, wide)
    outputs = sorted({str(v.name) for v in hub.graph.outputs} & set(values))
    if outputs:
        raise DataError(
            f"{outputs[0]!r} is an output of the model, which stays int8.",
            remedy="Leave it out of --int16, or take --precision int16x8.",
        )
    return replace(
        base,
        observer=request.observer or base.observer,
        keep_float=tuple(sorted({*base.keep_float, *nodes_in(hub, floating)})),
        wide=values,
        weights=recipe.weights or base.weights,
        # A file that takes and gives integers has one scale per output, whatever it holds.
        split_outputs=all(v.integer_io is None or v.float_islands for v in plan.variants),
    )


def _options(hub: ir.Model, plan: Plan) -> QuantizeOptions:
    """What the profiles' rules and the recipe ask of every integer precision."""
    rules = [p.quantization for p in plan.profiles]
    recipe = plan.recipe
    floating = frozenset(op for rule in rules for op in rule.float_ops)
    sizes = [rule.block_size for rule in rules if rule.block_size]
    return QuantizeOptions(
        observer=recipe.observer or QuantizeOptions().observer,
        per_channel=all(rule.per_channel for rule in rules) and recipe.per_channel is not False,
        block_size=recipe.block_size or min(sizes, default=None),
        keep_float=tuple(sorted(str(node.name) for node in hub.graph if node.op_type in floating)),
        compression=plan.compression,
    )


def _goals(request: BuildRequest, plan: Plan) -> Goals:
    """The gates as goals on held-out samples. Accuracy cannot fall by more than the share of answers that change."""
    budgets = [strictest(v, plan.profiles).max_drop_points for v in plan.variants if v.precision is Precision.INT8]
    drops = [request.max_drop] if request.max_drop is not None else [d for d in budgets if d is not None]
    least = [1 - drop / 100 for drop in drops if drop is not None]
    if request.min_agreement is not None:
        least.append(request.min_agreement)
    return Goals(request.min_sqnr, max(least, default=None), plan.effort(request) == "high")


def _worth_climbing(goals: Goals, data: Dataset) -> bool:
    """With too few samples to hold some out, only an explicit wish climbs (and is then told so)."""
    return goals.climb_all or (goals.any and not too_few(data))


def _lowers(plan: Plan) -> Callable[[ir.Model], str | None]:
    """Why a quantized hub cannot become one of the plan's INT8 artifacts, or None."""
    variants = {v.format: v for v in plan.variants if v.precision is Precision.INT8}

    def check(model: ir.Model) -> str | None:
        for variant in variants.values():
            options = ExportOptions(
                variant.precision,
                deployment_target=variant.deployment_target,
                integer_io=variant.integer_io,
                float_islands=variant.float_islands,
            )
            for refusal in EXPORTERS.get(variant.format.value).check(model, options):
                return str(refusal)
        return None

    return check


def _sticky(
    fresh: Quantized, reference: ir.Model, hub: ir.Model, data: Dataset, options: QuantizeOptions, plan: Plan
) -> tuple[Quantized, dict[str, Any]]:
    """Hold on to the previous release's numbers as far as the gate allows; the report's section says how far."""
    if plan.previous is None:
        return fresh, {}
    previous = read_numbers(plan.previous, reference)
    found = stick(fresh, reference, previous, options, make_bench(hub, data))
    section = {
        "previous": plan.previous.title,
        "allowed_loss_db": ALLOWED_LOSS_DB,
        "fresh_sqnr_db": found.fresh.sqnr_db,
        "chosen": asdict(found.how) if found.how else None,
        "advice": list(advice(reference, previous)),
    }
    return found.chosen or fresh, {"sticky": _plain(section)}


def _plain(value: Any) -> Any:
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else _finite(value)


def _ladder(climbed: Climb | None) -> dict[str, Any]:
    """The report's table of rungs; empty where nothing was judged."""
    if climbed is None:
        return {}
    return {
        "goals_met_on_held_out": climbed.met,
        "held_out_samples": climbed.held_out,
        "ladder": [{k: _finite(v) for k, v in asdict(a).items()} for a in climbed.attempts],
        "sensitivity": [{k: _finite(v) for k, v in asdict(s).items()} for s in climbed.sensitivity],
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scheme_section(quantized: Quantized) -> dict[str, Any]:
    spec = quantized.spec
    return {
        "nodes_quantized": len(spec.nodes) - len(spec.float_nodes),
        "nodes_float": {name: f"{d.op_type}: {d.reason}" for name, d in spec.float_nodes.items()},
        "notes": list(spec.notes),
        "spec_sha256": spec.sha256,
    }


def _section(quantized: Quantized, hub: ir.Model, data: Dataset) -> dict[str, Any]:
    """The report's section: what is in int8, what is not and why, and the noise of each node."""
    spec = quantized.spec
    evidence = gather_evidence(hub, quantized, data, samples=EVIDENCE_SAMPLES)
    worst, first = evidence.worst, evidence.first_below(COLLAPSED_DB)
    return {
        "scheme": "int8: per-channel symmetric weights, asymmetric activations",
        "nodes_int8": len(spec.nodes) - len(spec.float_nodes),
        "nodes_float": {name: f"{d.op_type}: {d.reason}" for name, d in spec.float_nodes.items()},
        "notes": list(spec.notes),
        "spec_sha256": spec.sha256,
        "calibration": dict(spec.provenance),
        "worst_node": f"{worst.node} ({worst.op_type}): {worst.sqnr_db:.1f} dB" if worst else None,
        "cpu": evidence.cpu_note or f"int8 dot products here: {', '.join(evidence.cpu_flags)}",
        "first_below_20_db": first.node if first else None,
        "sqnr_db": {e.node: e.sqnr_db if math.isfinite(e.sqnr_db) else None for e in evidence.layers},
        "saturated_share": {e.node: e.saturated_share for e in evidence.layers if e.saturated_share > 0},
        "saturated_above_limit": [e.node for e in evidence.saturated_above(SATURATION_LIMIT)],
        "saturation_limit": SATURATION_LIMIT,
        "nodes_int16": len(spec.wide_nodes),
        "evidence_samples": evidence.samples,
        "activations": [{k: _finite(v) for k, v in asdict(e).items()} for e in evidence.layers],
    }
