"""The end of a build: gates, report, manifest draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.cache import tool_versions
from compiler.checking import Checked, parity_gate
from compiler.draft import write_draft
from compiler.gates import (
    SIGNIFICANCE,
    Gate,
    accuracy_gate,
    agreement_gate,
    answers_gate,
    finite_gate,
    invariants_gate,
    saturation_gate,
    size_gate,
    sizes_gate,
    sqnr_gate,
)
from compiler.hostinfo import host_info
from compiler.hub import Imported
from compiler.hubfacts import hub_facts, hub_inputs, hub_outputs, semantics
from compiler.io_layout import port_layouts
from compiler.previous.predict import Update, predict_updates
from compiler.progress import Progress
from compiler.publish.quality import configuration, quality_document
from compiler.quantization.rescue.collapse import COLLAPSED_DB
from compiler.report.schema import ArtifactReport, Report
from compiler.report.write import write_report
from compiler.request import BuildRequest, Data, Plan
from compiler.stages import Exported, Shaped
from compiler.variants import Variant, strictest
from compiler.verification.metrics import Accuracy, accuracy
from compiler.verification.verify import Verified
from profiles.schema import Precision
from runtimes.artifact.files import sha256_tree, size_tree
from runtimes.preprocess import ImageInput

LOST_POINTS = 1.0  # what a hard net may lose (benchmarks/quantization)


def conclude(
    result: Path,
    request: BuildRequest,
    plan: Plan,
    imported: Imported,
    shaped: Shaped,
    data: Data,
    exported: Sequence[Exported],
    checked: Checked,
    progress: Progress,
) -> Report:
    """Judge the gates, write report.json, report.html and the manifest draft; set artifacts aside when a gate says no."""
    artifacts = tuple(
        _artifact_report(result, item, found, low, plan, request, checked, shaped.quantization)
        for item, found, low in zip(exported, checked.verified, checked.lowering, strict=True)
    )
    first = next(iter(checked.truth.outputs))
    source_accuracy = None
    if checked.truth.labels is not None:
        source_accuracy = accuracy(checked.truth.outputs[first], checked.truth.labels)
    report = Report(
        model=plan.model,
        source=asdict(imported.source),
        tools=tool_versions(),
        host=host_info(),
        request=_request(request),
        hub=hub_facts(shaped.floating),
        data=_data_facts(data),
        truth=checked.truth_kind,
        source_accuracy=source_accuracy,
        prune=shaped.prune,
        quantization=shaped.quantization,
        schemes=dict(shaped.schemes),
        artifacts=artifacts,
        agreement=checked.agreement,
        warnings=(
            *_warnings(request, plan, data, source_accuracy),
            *_collapsed(artifacts, request, data, shaped.quantization),
            *_saturated(shaped.quantization),
        ),
        updates=_updates(exported, plan),
    )
    for warning in report.warnings:
        progress.note(f"warning: {warning}")
    if report.ok:
        interface = (hub_inputs(shaped.floating), hub_outputs(shaped.floating))
        facts = {
            "source": asdict(imported.source),
            "tools": tool_versions(),
            "data": _digests(data),
            "configuration": configuration(_request(request)),
        }
        write_draft(
            result,
            plan.model,
            interface,
            semantics(shaped.floating, checked.truth.labels is not None),
            port_layouts(shaped.floating),
            {name: one.model_dump(mode="json") for name, one in data.preprocessing.items()},
            request.labels or data.classes,
            artifacts,
            checked.truth,
            facts,
            {"quality": quality_document(report)},
        )
    else:
        artifacts = set_aside(result, artifacts)
        report = replace(report, artifacts=artifacts)
    write_report(report, result)
    return report


def _updates(exported: Sequence[Exported], plan: Plan) -> tuple[Update, ...]:
    if plan.previous is None:
        return ()
    found = ((e.result.path, e.variant.format.value, e.variant.precision.value, e.variant.profiles) for e in exported)
    return predict_updates(plan.previous, found)


def set_aside(result: Path, artifacts: tuple[ArtifactReport, ...]) -> tuple[ArtifactReport, ...]:
    """Move artifacts of a failed build into ``rejected``; the report follows them."""
    (result / "rejected").mkdir()
    for artifact in artifacts:
        (result / artifact.path).rename(result / "rejected" / artifact.path)
    return tuple(replace(a, path=f"rejected/{a.path}") for a in artifacts)


def _artifact_report(
    result: Path,
    item: Exported,
    found: Verified,
    low: Verified,
    plan: Plan,
    request: BuildRequest,
    checked: Checked,
    int8: dict[str, Any] | None,
) -> ArtifactReport:
    path, variant = item.result.path, item.variant
    size = size_tree(path)
    return ArtifactReport(
        path=path.relative_to(result).as_posix(),
        format=variant.format.value,
        precision=variant.precision.value,
        profiles=variant.profiles,
        runtime=found.execution.runtime.name,
        runtime_version=found.execution.runtime.version,
        evidence=found.execution.runtime.evidence.value,
        size_bytes=size,
        sha256=sha256_tree(path),
        parity=found.parity,
        lowering=low.parity,
        accuracy=found.accuracy,
        flips=found.flips,
        latency_ms=found.execution.latency_ns / 1e6,
        peak_memory_bytes=found.execution.peak_memory_bytes,
        notes=item.result.notes,
        kernels=found.execution.kernels,
        refusals=item.result.refusals,
        gates=_gates(path.name, item.variant, found, low, size, plan, request, checked, int8),
    )


def _gates(
    name: str,
    variant: Variant,
    found: Verified,
    low: Verified,
    size: int,
    plan: Plan,
    request: BuildRequest,
    checked: Checked,
    int8: dict[str, Any] | None,
) -> tuple[Gate, ...]:
    budgets = strictest(variant, plan.profiles)
    lowered = parity_gate(name, variant, low, checked.halves)
    if lowered is not None and name in checked.diverging:
        lowered = replace(lowered, reason=f"{lowered.reason} {checked.diverging[name]}")
    gates: list[Gate | None] = [
        finite_gate(name, found.parity),
        invariants_gate(name, found.execution.outputs, checked.truth.outputs),
        lowered,
    ]
    if name in checked.sizes:
        gates.append(sizes_gate(name, variant.precision, checked.sizes[name], variant.half))
    drop = request.max_drop if request.max_drop is not None else budgets.max_drop_points
    if found.flips is not None and drop is not None:
        gates.append(accuracy_gate(name, found.flips, drop))
    if not variant.precision.is_float:
        if request.min_sqnr is not None:
            gates.append(sqnr_gate(name, found.parity, request.min_sqnr))
        if request.min_agreement is not None:
            gates.append(answers_gate(name, found.parity, request.min_agreement))
    if variant.precision is Precision.INT8 and int8 is not None and request.max_saturation is not None:
        gates.append(saturation_gate(name, int8["saturated_share"], request.max_saturation))
    if budgets.size_bytes is not None:
        gates.append(size_gate(name, size, budgets.size_bytes))
    gates += [agreement_gate(pair) for pair in checked.agreement if pair.first == name]
    return tuple(gate for gate in gates if gate is not None)


def _request(request: BuildRequest) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in asdict(request).items():
        plain[key] = str(value) if isinstance(value, Path) else value
    return plain


def _digests(data: Data) -> dict[str, str]:
    return {
        k: d.digest for k, d in (("calibration", data.calibration), ("evaluation", data.evaluation)) if d is not None
    }


def _data_facts(data: Data) -> dict[str, Any]:
    pairs = (("calibration", data.calibration), ("evaluation", data.evaluation))
    return {
        k: {"digest": d.digest, "samples": d.count, "labels": d.labels is not None} for k, d in pairs if d is not None
    }


def _warnings(request: BuildRequest, plan: Plan, data: Data, source: Accuracy | None) -> tuple[str, ...]:
    warnings = []
    if request.calibration is None and not (request.profiles or request.precisions or plan.already):
        warnings.append("INT8 was left out: it needs --calibration DATA.")
    if data.evaluation is None:
        warnings.append("Nothing but random inputs was compared: give --evaluate DATA to measure accuracy.")
    elif data.evaluation.labels is None:
        warnings.append("The evaluation data has no labels: accuracy was not measured.")
    if plan.coreml.images and not any(isinstance(one, ImageInput) for one in plan.preprocessing.values()):
        warnings.append("Core ML images=true has no effect: no input has a picture preprocessing (--preprocess).")
    if plan.coreml.classifier and not plan.labels:
        warnings.append(
            "Core ML classifier=true has no effect: there are no labels (--labels, or folders of pictures)."
        )
    warnings += _no_better_than_chance(source, data)
    if data.calibration is not None:
        warnings += data.calibration.warnings
    return tuple(warnings)


def _no_better_than_chance(source: Accuracy | None, data: Data) -> list[str]:
    """A source that only guesses was fed with what it was not made for; everything measured on such data means nothing."""
    labels = data.evaluation.labels if data.evaluation is not None else None
    classes = 0 if labels is None else len(np.unique(labels))
    if source is None or classes < 2 or source.low > 1 / classes:
        return []
    return [
        f"The source itself answers {source.value:.1%} of the samples right, where guessing among their {classes} classes gives "
        f"{1 / classes:.1%}: check the labels' order and the data's layout, colour order and range."
    ]


def _collapsed(
    artifacts: Sequence[ArtifactReport], request: BuildRequest, data: Data, section: dict[str, Any] | None
) -> list[str]:
    """What INT8 lost without a gate to say so: noise beyond a tenth of the signal, or a point of accuracy beyond chance."""
    made = [a for a in artifacts if a.precision == Precision.INT8.value]
    kept = [one["sqnr_db"] for one in (section or {}).get("ladder", []) if one["kept"]]
    figures = [figure for figure in kept[-1:] if figure is not None]
    if data.evaluation is not None:  # random inputs would tell nothing
        figures += [a.parity.snr_db for a in made]
    found = []
    if min(figures, default=COLLAPSED_DB) < COLLAPSED_DB and request.min_sqnr is None:
        found.append(f"{min(figures):.1f} dB of signal to noise are left")
    lossy = max((a for a in made if a.flips), key=lambda a: a.flips.drop_points if a.flips else 0.0, default=None)
    flips = None if lossy is None or any(g.name == "max-drop" for g in lossy.gates) else lossy.flips
    if flips is not None and lossy is not None and flips.drop_points > LOST_POINTS and flips.p_value < SIGNIFICANCE:
        found.append(f"{lossy.path} loses {flips.drop_points:.1f} points of accuracy")
    if not found:
        return []
    first = (section or {}).get("first_below_20_db")
    where = f" It begins at the output of {first!r}." if first else ""
    remedy = "Try --effort high, --int16 or --keep-float, or ask for a gate (--max-drop 1)."
    return [f"INT8 collapses: {' and '.join(found)}.{where} {remedy}"]


def _saturated(section: dict[str, Any] | None) -> list[str]:
    """Activations whose ranges leave out more than the stated share of what the evidence run saw."""
    found = (section or {}).get("saturated_above_limit", [])
    if not section or not found:
        return []
    worst = max(found, key=lambda node: section["saturated_share"][node])
    share, limit = section["saturated_share"][worst], section["saturation_limit"]
    return [
        f"INT8 saturates at {len(found)} activations, where more than {limit:.0%} of the values lie outside the range, "
        f"{share:.1%} at {worst!r}: calibrate on more varied samples, or with --observer min-max."
    ]
