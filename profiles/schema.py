"""The schema of a device profile: one TOML file says what a device runs and what it can afford."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Format(StrEnum):
    ONNX = "onnx"
    TFLITE = "tflite"
    COREML = "coreml"


class Precision(StrEnum):
    """How an artifact stores and computes its numbers. compiler/hub.py says what each integer precision is on the hub."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT16X8 = "int16x8"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_WEIGHTS = "int8-weights"
    INT4_WEIGHTS = "int4-weights"

    @property
    def is_float(self) -> bool:
        return self in (Precision.FP32, Precision.FP16)

    @property
    def needs_data(self) -> bool:
        """Whether activations are quantized with ranges that only calibration data can tell."""
        return self in (Precision.INT8, Precision.INT16X8)


class IntegerIO(StrEnum):
    """The type of the inputs and outputs of a full-integer .tflite file."""

    INT8 = "int8"
    UINT8 = "uint8"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hardware(_Strict):
    """What the device is; used to tell a measurement on it from one elsewhere."""

    arch: str = Field(description="machine name as `uname -m` prints it, e.g. aarch64")
    cpu: str
    cores: int = Field(gt=0)
    memory_bytes: int = Field(gt=0)
    features: tuple[str, ...] = ()


class Target(_Strict):
    """One artifact that a build makes for this device."""

    format: Format
    runtime: str = Field(description="name in runtimes.RUNTIMES")
    precisions: tuple[Precision, ...] = Field(min_length=1)


class Budgets(_Strict):
    """Gates of a build for this device. None means no limit.

    Latency and memory are the *device's*: a build machine's figure never fails them, edgewright-bench on the device does.
    """

    size_bytes: int | None = Field(default=None, gt=0)
    latency_ms: float | None = Field(default=None, gt=0)
    peak_memory_bytes: int | None = Field(default=None, gt=0)
    max_drop_points: float | None = Field(default=None, ge=0, description="accuracy points, against the source")


class QuantizationRules(_Strict):
    """Narrows the intersection of rules that the canonical specification obeys."""

    float_ops: tuple[str, ...] = Field(default=(), description="operator types kept in float on this device")
    per_channel: bool = True
    block_size: int | None = Field(default=None, gt=1, description="inputs per scale of int4 weights; default: all")
    integer_io: IntegerIO | None = Field(
        default=None, description="TFLite with integer activations takes and gives these; nothing may compute in float"
    )
    float_islands: bool = Field(default=False, description="with integer_io: nodes may compute in float all the same")


class CoreMLOptions(_Strict):
    deployment_target: str = Field(default="iOS16", description="a coremltools.target member")


class Profile(_Strict):
    """A device: hardware, artifacts to make, budgets, rules."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    source: str = Field(description="where the facts come from")
    hardware: Hardware
    targets: tuple[Target, ...] = Field(min_length=1)
    budgets: Budgets = Budgets()
    quantization: QuantizationRules = QuantizationRules()
    coreml: CoreMLOptions = CoreMLOptions()

    @field_validator("targets")
    @classmethod
    def _one_target_per_format(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        if len({t.format for t in targets}) != len(targets):
            raise ValueError("a format appears in two targets; list its precisions in one")
        return targets
