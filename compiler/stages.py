"""The pipeline's shaping and exporting stages, and the cache around them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.cache import Cache
from compiler.calibration.dataset import Dataset
from compiler.errors import UnsupportedModel
from compiler.exporters import EXPORTERS
from compiler.exporters.base import CoreMLInterface, ExportOptions, ExportResult, Pixels
from compiler.hubfacts import digest_of
from compiler.passes import clean_up
from compiler.passes.serialize import from_bytes, to_bytes
from compiler.progress import Progress
from compiler.quantization.unquantize import float_twin
from compiler.rebatch import Rebatch
from compiler.request import BuildRequest, Plan
from compiler.shaping import half_stage, prune_stage, quantize_stage, scheme_stage
from compiler.variants import Variant
from profiles.schema import Format, Precision, parse_sizes
from runtimes.preprocess import ImageInput


@dataclass(frozen=True, slots=True)
class Shaped:
    """The models that exporters lower: ``floating`` (pruned if asked) and a quantized hub per integer precision.

    ``half``: ``floating`` with marks on the nodes that float16 artifacts compute in float32, as the data showed.
    ``prune`` and ``quantization`` are the report's sections, the latter INT8's; ``schemes`` holds the other precisions'.
    ``digests`` identify the models for the cache, "float" and by precision.
    """

    floating: ir.Model
    quantized: Mapping[Precision, ir.Model]
    digests: Mapping[str, str]
    prune: dict[str, Any] | None
    quantization: dict[str, Any] | None
    schemes: Mapping[str, dict[str, Any]]
    half: ir.Model | None = None

    def model(self, precision: Precision) -> ir.Model:
        """What an artifact of ``precision`` is lowered from."""
        if precision is Precision.FP16 and self.half is not None:
            return self.half
        return self.floating if precision.is_float else self.quantized[precision]

    def digest(self, precision: Precision) -> str:
        if precision is Precision.FP16 and self.half is not None:
            return self.digests["half"]
        return self.digests["float" if precision.is_float else precision.value]


@dataclass(frozen=True, slots=True)
class Exported:
    variant: Variant
    result: ExportResult


def export_options(variant: Variant, plan: Plan, precision: Precision | None = None) -> ExportOptions:
    """The exporter's options for ``variant``, at its own precision unless another is named."""
    return ExportOptions(
        precision or variant.precision,
        deployment_target=variant.deployment_target,
        integer_io=variant.integer_io if precision is None else None,
        float_islands=variant.float_islands,
        half=variant.half,
        metadata=written_metadata(variant, plan),
        interface=coreml_interface(plan) if variant.format is Format.COREML else CoreMLInterface(),
    )


def coreml_interface(plan: Plan) -> CoreMLInterface:
    """What apps see of the Core ML packages: what the options ask for, as far as pictures and labels are declared."""
    pictures = {name: _pixels(one) for name, one in plan.preprocessing.items() if isinstance(one, ImageInput)}
    return CoreMLInterface(
        pictures if plan.coreml.images else {},
        (plan.labels or ()) if plan.coreml.classifier else (),
        {name: parse_sizes(text) for name, text in plan.coreml.flexible.items()},
    )


def _pixels(declared: ImageInput) -> Pixels:
    """(pixel * scale - mean) / std as pixel * scale + bias."""
    mean, std = (tuple(values) * (declared.channels // len(values)) for values in (declared.mean, declared.std))
    scale = tuple(declared.scale / s for s in std)
    return Pixels(declared.colour, declared.layout, scale, tuple(-m / s for m, s in zip(mean, std, strict=True)))


def cleaned(model: ir.Model, cache: Cache, scratch: Path) -> ir.Model:
    """The canonical hub form (compiler/hub.py)."""

    def produce(folder: Path) -> None:
        (folder / "hub.onnx").write_bytes(to_bytes(clean_up(model)))

    folder, _ = cache.stage("clean-up", digest_of(model), produce, scratch)
    return from_bytes((folder / "hub.onnx").read_bytes())


def shape(
    hub: ir.Model,
    calibration: Dataset | None,
    request: BuildRequest,
    plan: Plan,
    cache: Cache,
    scratch: Path,
    progress: Progress,
) -> Shaped:
    """Prune and quantize as asked; a source that is quantized already is taken as it is."""
    if plan.already is not None:
        return _as_it_is(hub, plan.already)
    prune_report: dict[str, Any] | None = None
    if request.prune:
        assert calibration is not None
        hub, prune_report = prune_stage(hub, calibration, request.prune, cache, scratch, progress)
    digests = {"float": digest_of(hub)}
    quantized: dict[Precision, ir.Model] = {}
    quantization: dict[str, Any] | None = None
    schemes: dict[str, dict[str, Any]] = {}
    for precision in dict.fromkeys(v.precision for v in plan.variants if not v.precision.is_float):
        if precision is Precision.INT8:
            assert calibration is not None
            model, quantization = quantize_stage(hub, calibration, request, plan, cache, scratch, progress)
        else:
            model, schemes[precision.value] = scheme_stage(hub, calibration, precision, plan, cache, scratch, progress)
        quantized[precision], digests[precision.value] = model, digest_of(model)
    half: ir.Model | None = None
    if calibration is not None and any(v.precision is Precision.FP16 for v in plan.variants):
        half, schemes[Precision.FP16.value] = half_stage(hub, calibration, cache, scratch, progress)
        digests["half"] = digest_of(half)
    return Shaped(hub, quantized, digests, prune_report, quantization, schemes, half)


def written_metadata(variant: Variant, plan: Plan) -> dict[str, str]:
    """What the artifact says about itself: the request's own, and the classes, for Xcode's preview in its own words.

    Source: coremltools, "Xcode Model Preview Types" (com.apple.coreml.model.preview.type and .params).
    """
    written = dict(plan.metadata)
    if plan.labels and variant.format is Format.COREML:
        written["com.apple.coreml.model.preview.type"] = "imageClassifier"
        written["com.apple.coreml.model.preview.params"] = json.dumps({"labels": list(plan.labels)})
    elif plan.labels:
        written["edgewright.labels"] = "\n".join(plan.labels)
    return written


def _as_it_is(hub: ir.Model, precision: Precision) -> Shaped:
    twin = float_twin(hub)
    digests = {"float": digest_of(twin), precision.value: digest_of(hub)}
    count = Counter(node.op_type for node in hub.graph)
    section = {
        "scheme": f"{precision.value}, with the numbers of the source",
        "quantized_activations": count["QuantizeLinear"],
        "quantized_constants": count["DequantizeLinear"] - count["QuantizeLinear"],
        "notes": [],
        "nodes_float": {},
    }
    return Shaped(twin, {precision: hub}, digests, None, None, {precision.value: section})


def export_all(
    shaped: Shaped,
    plan: Plan,
    result: Path,
    cache: Cache,
    scratch: Path,
    progress: Progress,
    rebatch: Rebatch | None = None,
) -> tuple[Exported, ...]:
    """Write every variant into ``result``. Raises UnsupportedModel with the refusals of all variants together."""
    refusals = []
    exported = []
    with progress.stage("export", len(plan.variants)) as advance:
        for done, variant in enumerate(plan.variants, 1):
            model = shaped.model(variant.precision)
            exporter = EXPORTERS.get(variant.format.value)
            options = export_options(variant, plan)
            found = exporter.check(model, options)
            refusals += found
            if not found:
                made = _export(variant, model, shaped, plan, result, cache, scratch, rebatch)
                exported.append(Exported(variant, made))
            advance(done)
    if refusals:
        raise UnsupportedModel(refusals)
    return tuple(exported)


def _export(
    variant: Variant,
    model: ir.Model,
    shaped: Shaped,
    plan: Plan,
    result: Path,
    cache: Cache,
    scratch: Path,
    rebatch: Rebatch | None,
) -> ExportResult:
    name = variant.file_name(plan.model)
    options = export_options(variant, plan)
    digest = shaped.digest(variant.precision)

    def produce(folder: Path) -> None:
        made = EXPORTERS.get(variant.format.value).export(model, folder / name, replace(options, rebatch=rebatch))
        (folder / "notes.txt").write_text("\n".join(made.notes), "utf-8")

    free = [digest_of(other) for other in rebatch.others] if rebatch else None
    key = [variant.format.value, asdict(options), digest, name, free]
    folder, _ = cache.stage("export", key, produce, scratch)
    notes = (folder / "notes.txt").read_text("utf-8").splitlines()
    source, destination = folder / name, result / name
    if source.is_dir():
        shutil.copytree(source, destination)
    else:
        shutil.copyfile(source, destination)
    return ExportResult(destination, tuple(notes))
