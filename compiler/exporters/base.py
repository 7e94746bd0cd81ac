"""What an exporter is, and the table of operator lowerings that each one fills."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from compiler.errors import Refusal
from compiler.hub import HUB_OPSET
from profiles.schema import IntegerIO, Precision

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.rebatch import Rebatch

ISLAND_REMEDY = "Replace it in the source, or allow it with --allow-float-islands."


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture as an input: x = pixel * scale + bias for each channel, pixels from 0 to 255.

    ``colour``: "RGB", "BGR" or "GRAY"; ``layout``: "NCHW" or "NHWC", of the model's own input.
    """

    colour: str
    layout: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CoreMLInterface:
    """What an app sees of a Core ML package, beside tensors.

    Args:
        pictures: by input, how its pixels become the model's numbers.
        classes: names of the classes of the first output, which is then given by name; empty for a tensor.
        flexible: by input, for each shape and axis the least and the largest size (profiles.schema.parse_sizes).
    """

    pictures: Mapping[str, Pixels] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    flexible: Mapping[str, tuple[tuple[tuple[int, int], ...], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the artifact should be.

    ``precision`` FP32 and FP16 come with a float hub; INT8 comes with a quantized hub (see compiler/hub.py).
    ``integer_io``: a TFLite file with integer activations has integer inputs and outputs (16 bits wide with int16 activations),
    and no node may compute in float unless ``float_islands``; other formats and precisions ignore it.
    ``half``: a Core ML artifact whose weights alone are compressed computes in float16.
    ``interface``: pictures, class names and flexible sizes of a Core ML package.
    ``rebatch``: the artifact takes every batch size (ONNX and TFLite); the model's own is the working one.
    ``metadata`` is written into the artifact where the format has a place for it (deterministic values only).
    """

    precision: Precision
    deployment_target: str = "iOS17"
    metadata: Mapping[str, str] = field(default_factory=dict)
    integer_io: IntegerIO | None = None
    float_islands: bool = False
    half: bool = False
    interface: CoreMLInterface = field(default_factory=CoreMLInterface)
    rebatch: Rebatch | None = None


@dataclass(frozen=True, slots=True)
class ExportResult:
    """``path`` is a file, or a folder for .mlpackage. ``notes`` are facts for the report (transposes left, casts added)."""

    path: Path
    notes: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def signature(node: ir.Node) -> str:
    """What a refusal says about a node: "opset 21, FLOAT[1,3,8,8], FLOAT[4,3,3,3] -> FLOAT[1,4,6,6]"."""
    opset = None if node.graph is None else node.graph.opset_imports.get(node.domain)
    version = opset if node.version is None else node.version
    if version is None and not node.domain:  # in the graph of another node, which imports nothing itself
        version = HUB_OPSET
    read = ", ".join(_typed(value) for value in node.inputs)
    return f"{node.domain or 'opset'} {version}, {read} -> {', '.join(_typed(v) for v in node.outputs)}"


def _typed(value: ir.Value | None) -> str:
    if value is None:
        return "nothing"
    sizes = "?" if value.shape is None else ",".join(str(size) for size in value.shape)
    return f"{value.dtype or 'unknown'}[{sizes}]"


class Exporter(Protocol):
    """Writes one format.

    ``check`` lists everything that cannot be expressed without writing anything. ``export`` writes ``destination``
    (whose suffix is ``suffix``) atomically and byte-identically for identical input; it never modifies ``model``.
    """

    format: str
    suffix: str

    def check(self, model: ir.Model, options: ExportOptions) -> list[Refusal]: ...

    def export(self, model: ir.Model, destination: Path, options: ExportOptions) -> ExportResult:
        """Raises UnsupportedModel with all refusals, StorageError."""
        ...


F = TypeVar("F", bound=Callable[..., object])


class LoweringTable(Generic[F]):
    """Operator lowerings of one exporter: ``@table.lowers("Conv", since=11)``; the highest ``since`` not above the opset wins."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._table: dict[str, dict[int, F]] = {}

    def lowers(self, *op_types: str, since: int = 1) -> Callable[[F], F]:
        def register(function: F) -> F:
            for op_type in op_types:
                versions = self._table.setdefault(op_type, {})
                if since in versions:
                    raise ValueError(f"{self.target}: {op_type} since {since} is registered twice")
                versions[since] = function
            return function

        return register

    def find(self, op_type: str, opset: int) -> F | None:
        fitting = [since for since in self._table.get(op_type, {}) if since <= opset]
        return self._table[op_type][max(fitting)] if fitting else None

    def op_types(self) -> list[str]:
        return sorted(self._table)
