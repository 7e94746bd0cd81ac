"""The numbers of an INT8 .mlpackage, under the names of the hub at hand.

A package names things by MIL identifiers, which are not the hub's names ("conv1.weight" became "conv1_weight"). They are
matched by what the hub's names become; what two names of the hub could stand for is left out. Biases lie there as floats and
are made codes again, which is exact up to 2**22; beyond, float32 held no more of them either.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.exporters.coreml.names import sanitize
from compiler.previous.numbers import Codes, Numbers, codes_of
from compiler.quantization.params import bias_params
from compiler.quantization.spec import QParams
from runtimes.artifact.archive import unpack
from runtimes.coreml_reference.package import read_package
from runtimes.coreml_reference.program import Operation, Program, Ref, parse_program
from runtimes.session import Array

_WITH_BIAS = ("conv", "conv_transpose", "linear")


def read(path: Path, hub: ir.Model) -> Numbers:
    """Of a package's folder, or of one packed as a release holds it. Raises ModelLoadError, RuntimeMissing, ArtifactError."""
    if path.is_dir():
        return _Reader(parse_program(*read_package(path)), hub).numbers()
    with tempfile.TemporaryDirectory(prefix="edgewright-previous-") as name:
        folder = Path(name) / "package"
        unpack(path, folder, path.stat().st_size)  # entries are stored: they cannot hold more
        return _Reader(parse_program(*read_package(folder)), hub).numbers()


class _Reader:
    def __init__(self, program: Program, hub: ir.Model) -> None:
        self._program = program
        self._names = _by_identifier(hub)
        self._turned = _turned(hub)

    def numbers(self) -> Numbers:
        numbers = Numbers()
        stored: dict[str, tuple[str, Codes]] = {}  # by identifier: the hub's name, and codes in the package's layout
        for op in self._program.operations:
            name = self._names.get(op.name)
            if op.type in ("quantize", "dequantize") and name is not None:
                numbers.activations.setdefault(name, self._activation(op))
            elif op.type in ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale") and name is not None:
                codes = self._codes(op)
                if codes is not None:
                    stored[op.name] = name, codes
                    numbers.constants.setdefault(name, codes)
            elif op.type in _WITH_BIAS:
                self._weighted(op, stored, numbers)
        return numbers

    def _weighted(self, op: Operation, stored: dict[str, tuple[str, Codes]], numbers: Numbers) -> None:
        """The weight in the hub's layout, and the bias beside it."""
        weight = op.args["weight"][0]
        if not isinstance(weight, Ref) or weight.name not in stored:
            return
        name, codes = stored[weight.name]
        if op.type == "linear" and name in self._turned:
            codes = numbers.constants[name] = _transposed(codes)
        bias, scale = self._array(op, "bias"), self._scale_of(op.args["x"][0])
        if bias is not None and bias.dtype == np.float32 and scale is not None:
            params = bias_params(scale, codes.params)
            numbers.biases[name] = Codes(params.quantize(bias), params)

    def _scale_of(self, source: object) -> float | None:
        """The scale of what the operation reads, None where that was not dequantized just before."""
        found = (op for op in self._program.operations if isinstance(source, Ref) and op.name == source.name)
        op = next(found, None)
        scale = self._array(op, "scale") if op is not None and op.type == "dequantize" else None
        return float(scale) if scale is not None and scale.size == 1 else None

    def _activation(self, op: Operation) -> QParams:
        scale, point = self._array(op, "scale"), self._array(op, "zero_point")
        assert scale is not None  # the operation's definition requires it
        number = 0 if point is None else int(point.reshape(-1)[0]) - (128 if point.dtype == np.uint8 else 0)
        return QParams("int8", scale.reshape(-1), number)

    def _codes(self, op: Operation) -> Codes | None:
        """None for scales that float16 rounded, blocks, and zero points per channel: no numbers that INT8 here can keep."""
        older = op.type == "constexpr_affine_dequantize"
        data, point = (
            self._array(op, key) for key in (("quantized_data", "zero_point") if older else ("data", "offset"))
        )
        scale = self._array(op, "scale")
        if data is None or scale is None or scale.dtype != np.float32 or data.dtype not in (np.int8, np.uint8):
            return None
        points = np.zeros(1, np.int32) if point is None else np.unique(point.astype(np.int32))
        axes = [a for a, size in enumerate(scale.shape) if size > 1]
        if len(points) > 1 or len(axes) > 1 or (axes and not older and scale.size != data.shape[axes[0]]):
            return None
        axis = (int(self._program_axis(op)) if older else axes[0]) if axes else None
        moved = 128 if data.dtype == np.uint8 else 0
        return codes_of((data.astype(np.int16) - moved).astype(np.int8), scale, int(points[0]) - moved, axis)

    def _program_axis(self, op: Operation) -> int:
        axis = self._array(op, "axis")
        return 0 if axis is None else int(axis)

    def _array(self, op: Operation, key: str) -> Array | None:
        value = op.args.get(key, (None,))[0]
        if isinstance(value, Ref):
            value = self._program.constants.get(value.name)
        return value if isinstance(value, np.ndarray) else None


def _by_identifier(hub: ir.Model) -> dict[str, str]:
    """What the exporter may have called a value of the hub, where one only could be meant."""
    found: dict[str, str | None] = {}
    for name in _values(hub):
        for identifier in {sanitize(f"{name}{suffix}") for suffix in ("", "/quantized", "/dequantized")}:
            found[identifier] = name if found.get(identifier, name) == name else None
    return {identifier: name for identifier, name in found.items() if name is not None}


def _values(hub: ir.Model) -> Iterator[str]:
    values = [*hub.graph.inputs, *hub.graph.initializers.values(), *(o for n in hub.graph for o in n.outputs)]
    yield from dict.fromkeys(value.name for value in values if value.name)


def _turned(hub: ir.Model) -> set[str]:
    """Matrices of [in, out] in the hub, which `linear` holds as [out, in]."""
    return {
        name
        for node in hub.graph
        if node.op_type in ("MatMul", "Gemm") and not (node.op_type == "Gemm" and _transposes(node))
        for value in node.inputs[1:2]
        if value is not None and (name := value.name)
    }


def _transposes(node: ir.Node) -> bool:
    return "transB" in node.attributes and bool(node.attributes["transB"].value)


def _transposed(codes: Codes) -> Codes:
    params = codes.params
    axis = None if params.axis is None else 1 - params.axis
    return Codes(codes.codes.T, QParams(params.dtype, params.scale, params.zero_point, axis, params.narrow))
