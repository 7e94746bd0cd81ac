"""Which artifacts a build makes: the union of what its profiles ask for, each made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from compiler.errors import DataError
from profiles.schema import Budgets, CoreMLOptions, Format, IntegerIO, Precision, Profile

SUFFIX = {Format.ONNX: ".onnx", Format.TFLITE: ".tflite", Format.COREML: ".mlpackage"}
DEFAULT_PRECISIONS = (Precision.INT8, Precision.FP16, Precision.FP32)
# What a format has no way to express, and what to take instead.
UNAVAILABLE = {
    (Format.COREML, Precision.INT16X8): "Core ML quantizes activations to 8 bits only; take fp16",
    (Format.COREML, Precision.INT8_DYNAMIC): "Core ML has no kernels that quantize as they run; take int8-weights",
}
# Where iOS17 does not do: int4, tables per group, and two ways of compression at once.
LEAST_TARGET = {
    p: "iOS18" for p in Precision if p in (Precision.INT4_WEIGHTS, Precision.SPARSE_INT8) or p.palette_bits is not None
}
TARGETS_WITHOUT_GROUPS = ("iOS15", "iOS16", "iOS17", "macOS12", "macOS13", "macOS14")  # of palettized weights
RUNTIME = {Format.ONNX: "onnxruntime", Format.TFLITE: "litert", Format.COREML: "coreml"}


@dataclass(frozen=True, slots=True)
class Variant:
    """One artifact to make. ``profiles`` is empty when the build names none.

    ``half``: whether a Core ML artifact whose weights alone are compressed computes in float16.
    """

    format: Format
    precision: Precision
    runtime: str
    profiles: tuple[str, ...]
    deployment_target: str
    integer_io: IntegerIO | None = None
    float_islands: bool = False
    half: bool = False

    def file_name(self, model: str) -> str:
        return f"{model}-{self.precision.value}{SUFFIX[self.format]}"


def plan_variants(
    profiles: Sequence[Profile],
    formats: Sequence[Format],
    precisions: Sequence[Precision],
    integer_io: IntegerIO | None = None,
    float_islands: bool = False,
    coreml: Mapping[str, Any] | None = None,
) -> tuple[Variant, ...]:
    """List the artifacts in the order in which the profiles name them: a device takes the first that it can run.

    Without profiles: every format at the default precisions, or what ``formats`` and ``precisions`` name; a format that was not
    named is left out at a precision that it does not have. With profiles these two narrow. ``integer_io`` and ``float_islands``
    are for TFLite with integer activations, ``coreml`` holds fields of CoreMLOptions; all come before the profiles' own.

    Raises:
        DataError: nothing is left, a format does not have the precision, two profiles want different Core ML options or integer
            inputs, or ``integer_io`` has no artifact to apply to.
    """
    wanted: dict[tuple[Format, Precision], list[tuple[str, str]]] = {}
    for profile in profiles:
        for target in profile.targets:
            for precision in target.precisions:
                wanted.setdefault((target.format, precision), []).append((profile.name, target.runtime))
    if not profiles:
        order = [p for p in Precision if p in precisions] if precisions else DEFAULT_PRECISIONS
        wanted = {(f, p): [] for f in formats or tuple(Format) for p in order if formats or (f, p) not in UNAVAILABLE}
    kept = {
        k: v for k, v in wanted.items() if (not formats or k[0] in formats) and (not precisions or k[1] in precisions)
    }
    if not kept:
        raise DataError(
            f"No artifact is left: the profiles ask for {', '.join(f'{f.value} {p.value}' for f, p in wanted)}.",
            remedy="Leave out --format and --precision, or name what the profiles ask for.",
        )
    for pair in kept.keys() & UNAVAILABLE.keys():
        raise DataError(f"There is no {pair[0].value} artifact at {pair[1].value}.", remedy=f"{UNAVAILABLE[pair]}.")
    options = coreml_options(profiles, coreml or {})
    chosen = bool(profiles) or "deployment_target" in (coreml or {})
    variants = [
        Variant(
            fmt,
            precision,
            users[0][1] if users else RUNTIME[fmt],
            tuple(name for name, _ in users),
            options.deployment_target if chosen else LEAST_TARGET.get(precision, "iOS17"),
            half=fmt is Format.COREML and precision.weights_only and options.compute == "fp16",
        )
        for (fmt, precision), users in kept.items()
    ]
    return _with_integer_io(variants, profiles, integer_io, float_islands)


def _with_integer_io(
    variants: Sequence[Variant], profiles: Sequence[Profile], integer_io: IntegerIO | None, float_islands: bool
) -> tuple[Variant, ...]:
    """The TFLite variants with integer activations get integer inputs and outputs, where asked for."""
    rules = [p.quantization for p in profiles if any(t.format is Format.TFLITE for t in p.targets)]
    wanted = {integer_io} if integer_io else {rule.integer_io for rule in rules}
    full = [v for v in variants if v.format is Format.TFLITE and v.precision.needs_data]
    if len(wanted) > 1 and full:
        raise DataError(
            "The profiles want different types of inputs for one .tflite file.", remedy="Build them one at a time."
        )
    if integer_io and not full:
        raise DataError(
            "--integer-io is for TFLite at int8 or int16x8, and none is to be made.",
            remedy="Add --format tflite --precision int8, or leave it out.",
        )
    io = next(iter(wanted), None)
    islands = float_islands or any(rule.float_islands for rule in rules)
    return tuple(replace(v, integer_io=io, float_islands=islands) if v in full else v for v in variants)


def coreml_options(profiles: Sequence[Profile], overrides: Mapping[str, Any]) -> CoreMLOptions:
    """What the profiles want of Core ML, with single fields overridden.

    Raises:
        DataError: a field is unknown or malformed, or two profiles differ in one that is not overridden.
    """
    wanted = [p.coreml.model_dump() for p in profiles if any(t.format is Format.COREML for t in p.targets)]
    merged: dict[str, Any] = {}
    for field in CoreMLOptions.model_fields:
        values = [options[field] for options in wanted]
        if field not in overrides and any(value != values[0] for value in values):
            raise DataError(
                f"The profiles want different Core ML options: {field} is {' and '.join(sorted(map(str, values)))}.",
                remedy=f"Build these profiles one at a time, or choose with --coreml {field}=VALUE.",
            )
        merged |= {field: values[0]} if values else {}
    try:
        return CoreMLOptions.model_validate(merged | dict(overrides))
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(
            f"The Core ML options cannot be used: {reasons}.", remedy="See docs/coreml.md for --coreml KEY=VALUE."
        ) from error


def strictest(variant: Variant, profiles: Sequence[Profile]) -> Budgets:
    """The smallest budget of each kind among the variant's profiles."""
    budgets = [p.budgets for p in profiles if p.name in variant.profiles]

    def least(field: str) -> float | None:
        return min((v for b in budgets if (v := getattr(b, field)) is not None), default=None)

    return Budgets.model_validate({field: least(field) for field in Budgets.model_fields})
