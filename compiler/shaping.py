"""Pruning and quantization as cached stages: a model in, a model and its section of the report out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.cache import Cache
from compiler.calibration.dataset import Dataset
from compiler.hubfacts import digest_of
from compiler.passes.serialize import from_bytes, to_bytes
from compiler.progress import Progress
from compiler.pruning import PruneOptions, prune
from compiler.quantization.engine import QUANTIZERS, Quantized
from compiler.quantization.evidence import gather_evidence
from compiler.quantization.ladder import climb, table
from compiler.quantization.plan import QuantizeOptions
from compiler.request import BuildRequest, Plan
from runtimes.artifact.canonical import canonical_json

EVIDENCE_SAMPLES = 16

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
    rules = [p.quantization for p in plan.profiles]
    floating = frozenset(op for rule in rules for op in rule.float_ops)
    options = QuantizeOptions(
        observer=request.observer or QuantizeOptions().observer,
        per_channel=all(rule.per_channel for rule in rules),
        keep_float=tuple(sorted(str(node.name) for node in hub.graph if node.op_type in floating)),
    )
    engine = QUANTIZERS.get(request.quantizer)
    key = [digest_of(hub), data.digest, request.quantizer, request.effort, asdict(options)]

    def produce(advance: Callable[[int], None]) -> tuple[ir.Model, dict[str, Any]]:
        if request.effort == "high":
            climbed = climb(hub, data, options, engine, progress.note)
            ladder = {"ladder": table(climbed.rungs), "held_out_samples": climbed.held_out}
            return climbed.best.model, _section(climbed.best, hub, data) | ladder
        quantized = engine(hub, data, options)
        return quantized.model, _section(quantized, hub, data)

    return _stage("quantize", key, produce, cache, scratch, progress)


def _section(quantized: Quantized, hub: ir.Model, data: Dataset) -> dict[str, Any]:
    """The report's section: what is in int8, what is not and why, and the noise of each node."""
    spec = quantized.spec
    evidence = gather_evidence(hub, quantized, data, samples=EVIDENCE_SAMPLES)
    worst = evidence.worst
    return {
        "scheme": "int8: per-channel symmetric weights, asymmetric activations",
        "nodes_int8": len(spec.nodes) - len(spec.float_nodes),
        "nodes_float": {name: f"{d.op_type}: {d.reason}" for name, d in spec.float_nodes.items()},
        "notes": list(spec.notes),
        "spec_sha256": spec.sha256,
        "calibration": dict(spec.provenance),
        "worst_node": f"{worst.node} ({worst.op_type}): {worst.sqnr_db:.1f} dB" if worst else None,
        "cpu": evidence.cpu_note or f"int8 dot products here: {', '.join(evidence.cpu_flags)}",
        "sqnr_db": {e.node: e.sqnr_db if math.isfinite(e.sqnr_db) else None for e in evidence.layers},
        "saturated_share": {e.node: e.saturated_share for e in evidence.layers if e.saturated_share > 0},
    }
