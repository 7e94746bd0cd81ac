"""`build --dry-run`: what would be made, and every decision of INT8 quantization, without performing any."""

from __future__ import annotations

import tempfile
from pathlib import Path

from compiler.cache import Cache
from compiler.calibration.collect import collect
from compiler.importers import import_model
from compiler.importers.base import ImportOptions
from compiler.pipeline import load_data
from compiler.progress import Progress, Silent
from compiler.quantization.plan import plan as plan_quantization
from compiler.quantization.spec import QuantizationSpec
from compiler.quantization.structure import analyse
from compiler.request import BuildRequest, Plan, plan_build
from compiler.shaping import int8_options
from compiler.stages import cleaned
from profiles.schema import Precision


def dry_run(request: BuildRequest, progress: Progress | None = None) -> tuple[Plan, QuantizationSpec | None]:
    """The artifacts, and where INT8 is among them the specification that a build would start from.

    Only then is the source loaded and calibrated on. Pruning and the rescue ladder are not tried: a build that they change starts
    from other weights, or ends at a better specification.

    Raises:
        EdgewrightError: as the build's own planning, import and calibration.
    """
    progress = progress or Silent()
    plan = plan_build(request)
    if plan.already or all(variant.precision is not Precision.INT8 for variant in plan.variants):
        return plan, None
    with progress.stage("import"):
        imported = import_model(request.source, ImportOptions(batch=request.batch, allow_pickle=request.allow_pickle))
    with tempfile.TemporaryDirectory(prefix="edgewright-plan-") as folder:
        hub = cleaned(imported.model, Cache(request.cache_dir), Path(folder))
    options = int8_options(hub, plan, request)
    data = load_data(request, imported, hub, plan).calibration
    assert data is not None  # plan_build lets no INT8 pass without
    wanted = frozenset(analyse(hub, options.keep_float, options.activations).activations)
    with progress.stage("calibrate") as advance:
        found = collect(hub, data, observer=options.observer, values=wanted, progress=lambda _, done, __: advance(done))
    return plan, plan_quantization(hub, found, options)
