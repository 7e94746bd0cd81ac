"""`build`: one source to verified artifacts. Each stage is a function from one typed value to the next; this file is their order.

source -> import -> clean up -> prune -> quantize -> export -> verify -> gates -> report, manifest draft
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from compiler.cache import Cache
from compiler.calibration.data import load_dataset
from compiler.calibration.scale import with_scale_doubts
from compiler.checking import verify_all
from compiler.concluding import conclude
from compiler.errors import DataError, Refusal, SourceError, UnsupportedModel
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ISLAND_REMEDY
from compiler.hub import Imported
from compiler.hubfacts import hub_inputs
from compiler.importers import import_model
from compiler.importers.base import ImportOptions
from compiler.io_layout import Layout, TurnedSession, channels_last, turned_dataset
from compiler.progress import Progress, Silent
from compiler.quantization.spec import NodePrecision
from compiler.quantization.structure import NEVER_FLOAT, analyse
from compiler.rebatch import TWIN_BATCHES, VERIFIED_BATCHES, WORKING_BATCH, Rebatch
from compiler.report.schema import Report
from compiler.request import BuildRequest, Data, Plan, plan_build
from compiler.stages import cleaned, coreml_interface, export_all, export_options, shape
from compiler.variants import Variant
from profiles.schema import Precision
from runtimes.artifact.files import storage_error
from runtimes.preprocess import AudioInput, ImageInput, load_preprocessing, shape_of
from runtimes.session import TensorSpec


def build(request: BuildRequest, progress: Progress | None = None) -> Report:
    """Run the whole pipeline and write ``request.output``.

    The folder appears complete or not at all. When a gate says no, the artifacts lie in its subfolder ``rejected`` and there is
    no manifest draft, so that nothing can be published by accident.

    Raises:
        EdgewrightError: see plan_build, importers, exporters; nothing is written.
    """
    progress = progress or Silent()
    plan = plan_build(request)
    try:
        request.output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{request.output.name}-", dir=request.output.parent))
    except OSError as error:
        raise storage_error(request.output, error) from error
    try:
        report = _build_into(scratch, request, plan, progress)
        _replace(scratch / "result", request.output)
        return report
    except OSError as error:
        raise storage_error(request.output, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build_into(scratch: Path, request: BuildRequest, plan: Plan, progress: Progress) -> Report:
    cache = Cache(request.cache_dir)
    with progress.stage("import"):
        batch = WORKING_BATCH if request.dynamic_batch else request.batch
        imported = import_model(request.source, ImportOptions(batch=batch, allow_pickle=request.allow_pickle))
    with progress.stage("clean up"):
        hub = cleaned(imported.model, cache, scratch)
    rebatch = _rebatch(request, hub, cache, scratch, progress) if request.dynamic_batch else None
    data = load_data(request, imported, hub, plan)
    if request.io_layout is Layout.NHWC:
        hub, imported, data = _turn(hub, imported, data)
    plan = replace(plan, labels=plan.labels or data.classes, preprocessing=data.preprocessing)
    _refuse_early(hub, plan)
    shaped = shape(hub, data.calibration, request, plan, cache, scratch, progress)
    result = scratch / "result"
    result.mkdir()
    exported = export_all(shaped, plan, result, cache, scratch, progress, rebatch)
    batches = VERIFIED_BATCHES if rebatch else ()
    checked = verify_all(exported, shaped, imported, data, progress, coreml_interface(plan), batches)
    return conclude(result, request, plan, imported, shaped, data, exported, checked, progress)


def _rebatch(request: BuildRequest, hub: ir.Model, cache: Cache, scratch: Path, progress: Progress) -> Rebatch:
    """The source imported at two more batch sizes. Raises SourceError where its batch size is not free."""
    others = []
    with progress.stage("import at other batch sizes"):
        for batch in TWIN_BATCHES:
            imported = import_model(request.source, ImportOptions(batch=batch, allow_pickle=request.allow_pickle))
            other = cleaned(imported.model, cache, scratch)
            imported.reference.close()
            if not any(spec.shape and spec.shape[0] == batch for spec in hub_inputs(other)):
                raise SourceError(
                    f"{request.source} has a fixed batch size, so no artifact of it takes another one.",
                    remedy="Export the model with a free first dimension, or leave out --batch dynamic.",
                )
            others.append(channels_last(other).model if request.io_layout is Layout.NHWC else other)
    working = channels_last(hub).model if request.io_layout is Layout.NHWC else hub
    return Rebatch(working, (others[0], others[1]))


def _turn(hub: ir.Model, imported: Imported, data: Data) -> tuple[ir.Model, Imported, Data]:
    """Hub, source and data with the channels of images last. Data is given in the source's layout."""
    turned = channels_last(hub)
    reference = TurnedSession(imported.reference, turned)
    calibration, evaluation = (
        None if d is None else turned_dataset(d, turned.inputs) for d in (data.calibration, data.evaluation)
    )
    declared = {
        name: one.model_copy(update={"layout": "NHWC"}) if name in turned.inputs else one
        for name, one in data.preprocessing.items()
    }
    return turned.model, replace(imported, reference=reference), Data(calibration, evaluation, declared)


def load_data(request: BuildRequest, imported: Imported, hub: ir.Model, plan: Plan) -> Data:
    """Calibration and evaluation data, checked against the model. Raises DataError, InputMismatch."""
    inputs = hub_inputs(imported.model)
    declared = _declared(request, inputs)
    calibration = load_dataset(request.calibration, inputs, declared) if request.calibration else None
    if calibration is not None and plan.already is None:
        calibration = with_scale_doubts(hub, calibration)
    evaluation = load_dataset(request.evaluate, inputs, declared) if request.evaluate else calibration
    return Data(calibration, evaluation, declared)


def _declared(request: BuildRequest, inputs: tuple[TensorSpec, ...]) -> dict[str, ImageInput | AudioInput]:
    """The preprocessing that was asked for, held against the model's inputs. Raises InputMismatch, DataError."""
    if request.preprocess is None:
        return {}
    declared = load_preprocessing(request.preprocess, tuple(spec.name for spec in inputs))
    for spec in inputs:
        if spec.name in declared and (made := shape_of(declared[spec.name]))[1:] != spec.shape[1:]:
            raise DataError(
                f"{request.preprocess} makes samples of {'x'.join(map(str, made[1:]))} for input {spec.name!r}, which takes "
                f"{'x'.join(map(str, spec.shape[1:]))}.",
                remedy="Correct its size, colour or layout.",
            )
    return declared


def _refuse_early(hub: ir.Model, plan: Plan) -> None:
    """List what every format refuses, before calibration or any other long work starts. Raises UnsupportedModel."""
    refusals: list[Refusal] = []
    for fmt in dict.fromkeys(v.format for v in plan.variants):
        variant = next(v for v in plan.variants if v.format is fmt)
        refusals += EXPORTERS.get(fmt.value).check(hub, export_options(variant, plan, plan.already or Precision.FP32))
    for variant in () if plan.already else plan.variants:
        if variant.integer_io is not None and not variant.float_islands:
            refusals += _float_nodes(hub, variant)
    if refusals:
        raise UnsupportedModel(list(dict.fromkeys(refusals)))


def _float_nodes(hub: ir.Model, variant: Variant) -> list[Refusal]:
    """What a full-integer file cannot hold, by the rules of quantization alone: no calibration is needed to know it."""
    activations = "int16" if variant.precision is Precision.INT16X8 else "int8"
    decisions = analyse(hub, activations=activations).decisions
    return [
        Refusal(str(node.name), node.op_type, f"it stays in float: {decision.reason}", "tflite", ISLAND_REMEDY)
        for node in hub.graph
        if (decision := decisions[str(node.name)]).precision is NodePrecision.FLOAT32
        and any(value.dtype == ir.DataType.FLOAT for value in node.outputs)
        and decision.reason not in NEVER_FLOAT
    ]


def _replace(result: Path, output: Path) -> None:
    """Put the finished folder in place; an existing one is moved aside first and removed last."""
    old = None
    if output.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{output.name}-old-", dir=output.parent)) / "old"
        output.rename(old)
    result.rename(output)
    if old is not None:
        shutil.rmtree(old.parent, ignore_errors=True)
