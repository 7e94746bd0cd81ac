"""What a build is asked for, checked and planned before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import DataError, OutputExists
from compiler.importers.quantized import source_precision
from compiler.io_layout import Layout
from compiler.naming import model_name
from compiler.previous.find import PreviousRelease, find_previous
from compiler.variants import Variant, plan_variants
from profiles.catalog import load_profile
from profiles.schema import Format, IntegerIO, Precision, Profile

if TYPE_CHECKING:
    from compiler.calibration.dataset import Dataset
    from runtimes.preprocess import AudioInput, ImageInput


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """Everything that shapes a build; the fields are `edgewright build`'s options.

    ``prune`` is the share of channels to remove; ``max_drop`` accuracy points, over the profiles' own budgets.
    ``min_sqnr`` (dB) and ``min_agreement`` (a share) are gates; ``effort`` "high" climbs the whole rescue ladder.
    ``integer_io``: integer inputs and outputs of TFLite, all kernels on integers unless ``float_islands``.
    ``dynamic_batch``: ONNX and TFLite artifacts take every batch size; ``batch`` is then not used.
    ``io_layout`` NHWC puts the channels of images last; None leaves them as the source has them.
    ``preprocess``: a TOML file that says how pictures or recordings become inputs (runtimes/preprocess.py).
    ``metadata``: KEY=VALUE, written into every artifact; Core ML shows author, license, version and description in their places.
    ``previous``: where the release before is (compiler/previous/find.py); INT8 keeps its numbers. ``cache_dir`` None turns the
    stage cache off.
    """

    source: str
    output: Path
    name: str | None = None
    profiles: tuple[str, ...] = ()
    formats: tuple[Format, ...] = ()
    precisions: tuple[Precision, ...] = ()
    calibration: str | None = None
    evaluate: str | None = None
    max_drop: float | None = None
    min_sqnr: float | None = None
    min_agreement: float | None = None
    effort: str = "normal"
    prune: float | None = None
    observer: str | None = None
    quantizer: str = "edgewright"
    labels: tuple[str, ...] | None = None
    preprocess: Path | None = None
    metadata: tuple[str, ...] = ()
    previous: str | None = None
    integer_io: IntegerIO | None = None
    float_islands: bool = False
    io_layout: Layout | None = None
    batch: int = 1
    dynamic_batch: bool = False
    allow_pickle: bool = False
    force: bool = False
    cache_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `--dry-run` shows: the artifacts that a build would make, before anything is loaded."""

    model: str
    profiles: tuple[Profile, ...]
    variants: tuple[Variant, ...]
    previous: PreviousRelease | None = None
    already: Precision | None = None  # what the source itself is quantized to
    metadata: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None


def plan_build(request: BuildRequest) -> Plan:
    """Check the request and list its artifacts.

    Raises:
        ProfileError, DataError: a profile is unknown, nothing is left to make, int8 was asked for without calibration data.
        PublishError, PublishTrustError, ManifestError: the previous release is damaged.
        OutputExists: the output folder is not empty and ``force`` is not set.
    """
    profiles = tuple(load_profile(name) for name in request.profiles)
    already = source_precision(request.source)
    wanted = (already,) if already and not request.precisions else request.precisions
    variants = plan_variants(profiles, request.formats, wanted, request.integer_io, request.float_islands)
    if already:
        _check_quantized_source(request, already, variants)
    elif request.calibration is None:
        variants = _without_data(request, variants)
    if request.dynamic_batch and any(v.format is Format.COREML for v in variants):
        raise DataError(
            "A Core ML program has one batch size.", remedy="Name the other formats: --format onnx --format tflite."
        )
    if request.max_drop is not None and request.max_drop < 0:
        raise DataError(f"--max-drop is {request.max_drop:g}.", remedy="Give the points that may be lost, 0 or more.")
    if request.effort == "high" and request.quantizer != "edgewright":
        raise DataError(
            f"The rescue ladder starts from edgewright's own plan, not from {request.quantizer}'s.",
            remedy="Leave out --effort high or --quantizer.",
        )
    if request.prune and request.calibration is None:
        raise DataError("Pruning repairs its consumers on calibration data.", remedy="Give --calibration DATA.")
    _check_output(request)
    name = request.name or model_name(request.source)
    previous = find_previous(request.previous, name) if request.previous else None
    return Plan(name, profiles, variants, previous, already, _metadata(request), request.labels)


def _check_quantized_source(request: BuildRequest, already: Precision, variants: tuple[Variant, ...]) -> None:
    """A quantized source is lowered as it is. Raises DataError where the request asks for anything else."""
    others = [v.precision.value for v in variants if v.precision is not already]
    if others:
        raise DataError(
            f"{request.source} is quantized to {already.value} already; {others[0]} cannot be made from it.",
            remedy=f"Give the float model, or take --precision {already.value}.",
        )
    changes = (
        ("--prune", request.prune),
        ("--previous", request.previous),
        ("--effort high", request.effort == "high"),
        ("--observer", request.observer),
    )
    asked = [option for option, value in changes if value]
    if asked:
        raise DataError(
            f"{asked[0]} changes the numbers of a model, and {request.source} is quantized to {already.value} already.",
            remedy="Give the float model, or leave the option out.",
        )


def _metadata(request: BuildRequest) -> dict[str, str]:
    """KEY=VALUE pairs. Raises DataError."""
    pairs = [text.partition("=") for text in request.metadata]
    bad = [key + sign + value for key, sign, value in pairs if not key.strip() or not sign]
    if bad:
        raise DataError(
            f"--metadata {bad[0]} is no KEY=VALUE.", remedy="Write for instance --metadata author='Jo Doe'."
        )
    return {key.strip(): value for key, _, value in pairs}


def _without_data(request: BuildRequest, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """The variants that can be made without calibration data. Raises DataError where a missing one was asked for."""
    missing = [v.precision for v in variants if v.precision.needs_data]
    if missing and (request.profiles or set(missing) & set(request.precisions)):
        raise DataError(
            f"{missing[0].value.upper()} was asked for and there is no calibration data.",
            remedy="Give --calibration DATA (100 typical samples are enough), or take --precision int8-weights.",
        )
    return tuple(v for v in variants if not v.precision.needs_data)


def _check_output(request: BuildRequest) -> None:
    if request.output.is_file():
        raise OutputExists(f"{request.output} is a file.", remedy="Give a folder that does not exist yet, or is empty.")
    if request.output.exists() and not request.force and any(request.output.iterdir()):
        raise OutputExists(
            f"{request.output} is not empty.", remedy="Choose another folder, or replace it with --force."
        )


@dataclass(frozen=True, slots=True)
class Data:
    """Calibration and evaluation data; evaluation falls back to calibration, and to None.

    ``preprocessing``: by input, how pictures or recordings become it, for the data and for the device.
    """

    calibration: Dataset | None
    evaluation: Dataset | None
    preprocessing: Mapping[str, ImageInput | AudioInput] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the labels, where the data told them."""
        return next((d.classes for d in (self.evaluation, self.calibration) if d is not None and d.classes), None)
