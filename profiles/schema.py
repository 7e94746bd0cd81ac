"""The schema of a device profile: one TOML file says what a device runs and what it can afford."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

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
    PALETTIZED8 = "palettized8"
    PALETTIZED6 = "palettized6"
    PALETTIZED4 = "palettized4"
    PALETTIZED3 = "palettized3"
    PALETTIZED2 = "palettized2"
    PALETTIZED1 = "palettized1"
    SPARSE = "sparse"
    SPARSE_INT8 = "sparse-int8"
    SPARSE_PALETTIZED8 = "sparse-palettized8"
    SPARSE_PALETTIZED6 = "sparse-palettized6"
    SPARSE_PALETTIZED4 = "sparse-palettized4"

    @property
    def is_float(self) -> bool:
        return self in (Precision.FP32, Precision.FP16)

    @property
    def weights_only(self) -> bool:
        """Whether weights alone are compressed: artifacts compute in float what their own hub computes."""
        integers = (Precision.INT8, Precision.INT16X8, Precision.INT8_DYNAMIC)
        return not self.is_float and self not in integers

    @property
    def palette_bits(self) -> int | None:
        """Bits of an index where weights take their values from a table, else None."""
        family, _, bits = self.value.rpartition("palettized")
        return int(bits) if family in ("", "sparse-") and bits.isdigit() else None

    @property
    def is_sparse(self) -> bool:
        """Whether the smallest weights are set to zero and left out of the file where the format can."""
        return self.value.startswith("sparse")

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
    sparsity: float | None = Field(
        default=None, ge=0, lt=1, description="share of weights that sparse precisions set to zero; default: 0.5"
    )
    palette_group: int | None = Field(
        default=None, gt=0, description="output channels that share a table; default: 16, before iOS18 all"
    )
    palette_table: Literal["float", "int8"] | None = Field(
        default=None, description="how tables of palettized weights are stored; default: float"
    )


class CoreMLOptions(_Strict):
    """How Core ML packages look to an app (docs/coreml.md)."""

    deployment_target: str = Field(default="iOS16", description="a coremltools.target member")
    compute: Literal["fp32", "fp16"] = Field(
        default="fp32", description="what artifacts whose weights alone are compressed compute in"
    )
    images: bool = Field(default=False, description="inputs with a declared picture preprocessing take pictures")
    classifier: bool = Field(default=False, description="with labels: the class's name, and the scores by class")
    flexible: dict[str, str] = Field(
        default={}, description="by input, its sizes: '1..8x3x224x224', or a list '1x3x224x224,1x3x320x320'"
    )

    @field_validator("flexible")
    @classmethod
    def _readable(cls, flexible: dict[str, str]) -> dict[str, str]:
        for text in flexible.values():
            parse_sizes(text)
        return flexible


def parse_sizes(text: str) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Shapes as text: for each shape, for each axis the least and the largest size.

    One shape may have ranges ("1..8x3x224x224"); several, separated by commas, list every shape that is taken.

    Raises:
        ValueError: it is not written so, or a range is empty.
    """
    shapes = tuple(
        tuple((int(low), int(high or low)) for low, _, high in (size.partition("..") for size in shape.split("x")))
        for shape in text.replace(" ", "").split(",")
    )
    sizes = [size for shape in shapes for size in shape]
    if any(not 0 < low <= high for low, high in sizes) or len({len(shape) for shape in shapes}) != 1:
        raise ValueError(f"{text!r} has an empty range, or shapes of different ranks")
    if len(shapes) > 1 and any(low != high for low, high in sizes):
        raise ValueError(f"{text!r} mixes a list of shapes with ranges")
    return shapes


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
