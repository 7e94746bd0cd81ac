"""What a build is asked for, checked and planned before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import DataError, OutputExists
from compiler.importers.quantized import source_precision
from compiler.io_layout import Layout
from compiler.naming import model_name
from compiler.previous.find import PreviousRelease, find_previous
from compiler.quantization.compression import PALETTE_GROUP, Compression
from compiler.variants import TARGETS_WITHOUT_GROUPS, Variant, coreml_options, plan_variants
from profiles.catalog import load_profile
from profiles.recipe import RecipeSettings, load_recipe
from profiles.schema import CoreMLOptions, Format, IntegerIO, Precision, Profile

if TYPE_CHECKING:
    from compiler.calibration.dataset import Dataset
    from runtimes.preprocess import AudioInput, ImageInput


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """Everything that shapes a build; the fields are `edgewright build`'s options.

    ``prune`` is the share of channels to remove; ``max_drop`` accuracy points, over the profiles' own budgets.
    ``min_sqnr`` (dB), ``min_agreement`` and ``max_saturation`` (shares) are gates; ``effort`` "high" climbs the whole ladder.
    ``recipe`` is a name or file of profiles.recipe; options given here come before its own. ``keep_float`` and ``int16`` are scopes
    (compiler/quantization/scopes.py) of nodes to leave in float and of values to hold in 16 bits, at INT8.
    ``integer_io``: integer inputs and outputs of TFLite, all kernels on integers unless ``float_islands``.
    ``dynamic_batch``: ONNX and TFLite artifacts take every batch size; ``batch`` is then not used.
    ``io_layout`` NHWC puts the channels of images last; None leaves them as the source has them.
    ``preprocess``: a TOML file that says how pictures or recordings become inputs (runtimes/preprocess.py).
    ``metadata``: KEY=VALUE, written into every artifact; Core ML shows author, license, version and description in their places.
    ``sparsity``, ``palette_group``, ``palette_table``: of sparse and palettized weights, over the profiles' own.
    ``coreml``: KEY=VALUE, fields of profiles.schema.CoreMLOptions over the profiles' own.
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
    max_saturation: float | None = None
    effort: str = "normal"
    prune: float | None = None
    observer: str | None = None
    quantizer: str = "edgewright"
    recipe: str | None = None
    keep_float: tuple[str, ...] = ()
    int16: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    preprocess: Path | None = None
    metadata: tuple[str, ...] = ()
    previous: str | None = None
    sparsity: float | None = None
    palette_group: int | None = None
    palette_table: str | None = None
    coreml: tuple[str, ...] = ()
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
    coreml: CoreMLOptions = field(default_factory=CoreMLOptions)
    compression: Compression = field(default_factory=Compression)
    preprocessing: Mapping[str, ImageInput | AudioInput] = field(default_factory=dict)
    recipe: RecipeSettings = field(default_factory=RecipeSettings)

    def scopes(self, request: BuildRequest) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What to keep in float and what to hold in 16 bits: the recipe's and the request's."""
        return self.recipe.keep_float + request.keep_float, self.recipe.int16 + request.int16

    def effort(self, request: BuildRequest) -> str:
        return "high" if "high" in (request.effort, self.recipe.effort) else "normal"


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
    coreml = coreml_overrides(request.coreml)
    variants = plan_variants(profiles, request.formats, wanted, request.integer_io, request.float_islands, coreml)
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
    recipe = load_recipe(request.recipe).quantization if request.recipe else RecipeSettings()
    if "high" in (request.effort, recipe.effort) and request.quantizer != "edgewright":
        raise DataError(
            f"The rescue ladder starts from edgewright's own plan, not from {request.quantizer}'s.",
            remedy="Leave out --effort high, the recipe that asks for it, or --quantizer.",
        )
    if request.prune and request.calibration is None:
        raise DataError("Pruning repairs its consumers on calibration data.", remedy="Give --calibration DATA.")
    _check_output(request)
    name = request.name or model_name(request.source)
    previous = find_previous(request.previous, name) if request.previous else None
    return Plan(
        name,
        profiles,
        variants,
        previous,
        already,
        _metadata(request),
        request.labels,
        coreml_options(profiles, coreml),
        _compression(request, profiles, variants),
        recipe=recipe,
    )


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
        ("--recipe", request.recipe),
        ("--keep-float", request.keep_float),
        ("--int16", request.int16),
    )
    asked = [option for option, value in changes if value]
    if asked:
        raise DataError(
            f"{asked[0]} changes the numbers of a model, and {request.source} is quantized to {already.value} already.",
            remedy="Give the float model, or leave the option out.",
        )


def coreml_overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE to fields of CoreMLOptions; ``flexible.INPUT=SIZES`` goes to that input. Raises DataError."""
    fields: dict[str, Any] = {}
    for text in pairs:
        key, sign, value = text.partition("=")
        if not sign:
            raise DataError(f"--coreml {text} is no KEY=VALUE.", remedy="Write for instance --coreml images=true.")
        family, dot, name = key.strip().partition(".")
        if family == "flexible" and dot:
            fields.setdefault("flexible", {})[name] = value
        else:
            fields[key.strip()] = value
    return fields


def _compression(request: BuildRequest, profiles: tuple[Profile, ...], variants: tuple[Variant, ...]) -> Compression:
    """The request's wishes, else the profiles', else what the Core ML targets can store: tables per group came with iOS18."""
    rules = [profile.quantization for profile in profiles]
    shares = [request.sparsity] if request.sparsity is not None else [r.sparsity for r in rules]
    groups = [request.palette_group] if request.palette_group else [r.palette_group for r in rules]
    tables = [request.palette_table] if request.palette_table else [r.palette_table for r in rules]
    targets = [v.deployment_target for v in variants if v.format is Format.COREML and v.precision.palette_bits]
    early = any(target in TARGETS_WITHOUT_GROUPS for target in targets)
    return Compression(
        sparsity=min((s for s in shares if s is not None), default=Compression().sparsity),
        palette_group=min((g for g in groups if g is not None), default=None if early else PALETTE_GROUP),
        int8_table="int8" in tables,
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
