"""Weights from tables and sparse weights: what the file holds, that it shrinks, and that every reader sees the hub's numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from compiler.errors import UnsupportedModel
from compiler.exporters.base import ExportOptions
from compiler.exporters.coreml import EXPORTER
from compiler.hub_session import open_hub
from compiler.quantization.plan import Compression, QuantizeOptions
from compiler.quantization.schemes import quantize_as
from profiles.schema import Precision
from runtimes.coreml_reference.session import open_package
from runtimes.session import Array
from tests.compiler.exporters.coreml.interpreter import program_of, run_package
from tests.compiler.exporters.coreml.support import hub, parse, random_feeds, relative_error

COMPRESSED = [p for p in Precision if p.palette_bits is not None or p.is_sparse]
GROUPED = Compression(palette_group=8)
TABLES_OF_INT8 = Compression(palette_group=8, int8_table=True)


@pytest.fixture(scope="module")
def net() -> ir.Model:
    """A convolution, a product with its weight turned, and one without: channels lie on axes 0, 1 and 0."""
    rng = np.random.default_rng(3)

    def weight(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    text = """
    net (float[1, 8, 10, 10] x) => (float[1, 24] y) {
      a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
      b = Relu (a)
      c = GlobalAveragePool (b)
      d = Flatten (c)
      e = MatMul (d, w2)
      y = Gemm <transB = 1> (e, w3)
    }
    """
    named = {"w1": weight(32, 8, 3, 3), "b1": weight(32, 1)[:, 0], "w2": weight(32, 48), "w3": weight(24, 48)}
    model = hub(parse(text, **named))
    for node in model.graph:
        node.name = node.name or node.op_type
    return model


def reference(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    """onnxruntime's answer, without its own ideas of how to compute with integer weights."""
    with open_hub(model) as session:
        return session.run(feeds)


def _export(model: ir.Model, folder: Path, precision: Precision, target: str = "iOS18", **more: Any) -> Path:
    path = folder / f"{precision.value}-{target}.mlpackage"
    return EXPORTER.export(model, path, ExportOptions(precision, target, **more)).path


def _size(path: Path) -> int:
    return (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size


def _ops(path: Path) -> Counter[str]:
    return Counter(op.op_type for op in program_of(path).operations)


@pytest.mark.parametrize("precision", COMPRESSED, ids=str)
@pytest.mark.parametrize("compression", [Compression(), GROUPED, TABLES_OF_INT8], ids=["one", "grouped", "int8-table"])
def test_artifact_computes_what_its_hub_computes(
    net: ir.Model, tmp_path: Path, precision: Precision, compression: Compression
) -> None:
    made = quantize_as(net, None, precision, QuantizeOptions(compression=compression)).model
    feeds = random_feeds(net)
    want = reference(made, feeds)
    with open_package(_export(made, tmp_path, precision)) as session:
        assert relative_error(session.run(feeds), want) < 1e-5
    assert relative_error(want, reference(net, feeds)) > 1e-6  # something was compressed


@pytest.mark.parametrize("precision", COMPRESSED, ids=str)
def test_coremltools_decodes_the_same_weights(net: ir.Model, tmp_path: Path, precision: Precision) -> None:
    """The second reader uses coremltools' own decoding (tests/.../interpreter.py shares nothing with the evaluator)."""
    made = quantize_as(net, None, precision, QuantizeOptions(compression=TABLES_OF_INT8)).model
    feeds = random_feeds(net)
    assert relative_error(run_package(_export(made, tmp_path, precision), feeds), reference(made, feeds)) < 1e-5


EXPECTED = {
    "palettized4": (GROUPED, {"constexpr_lut_to_dense": 3}),
    "palettized3": (TABLES_OF_INT8, {"constexpr_lut_to_dense": 3, "constexpr_blockwise_shift_scale": 3}),
    "sparse": (GROUPED, {"constexpr_sparse_to_dense": 3}),
    "sparse-int8": (GROUPED, {"constexpr_sparse_to_dense": 3, "constexpr_sparse_blockwise_shift_scale": 3}),
    "sparse-palettized4": (GROUPED, {"constexpr_sparse_to_dense": 3, "constexpr_lut_to_sparse": 3}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_file_holds_the_documented_operations(net: ir.Model, tmp_path: Path, name: str) -> None:
    compression, counts = EXPECTED[name]
    made = quantize_as(net, None, Precision(name), QuantizeOptions(compression=compression)).model
    ops = _ops(_export(made, tmp_path, Precision(name)))
    assert {kind: n for kind, n in ops.items() if kind.startswith("constexpr")} == counts


def test_fewer_bits_make_smaller_files(net: ir.Model, tmp_path: Path) -> None:
    sizes = {}
    for bits in (8, 6, 4, 3, 2, 1):
        precision = Precision(f"palettized{bits}")
        sizes[bits] = _size(_export(quantize_as(net, None, precision).model, tmp_path, precision))
    dense = _size(_export(net, tmp_path, Precision.FP32))
    assert dense > sizes[8] > sizes[6] > sizes[4] > sizes[3] > sizes[2] > sizes[1]
    elements = 32 * 8 * 9 + 32 * 48 + 24 * 48
    assert sizes[4] < elements / 2 + 4096  # half a byte each; 4 KiB for tables, biases and the file's own headers


def test_a_sparse_file_holds_what_is_not_zero(net: ir.Model, tmp_path: Path) -> None:
    options = QuantizeOptions(compression=Compression(sparsity=0.75))
    made = quantize_as(net, None, Precision.SPARSE, options).model
    elements = 32 * 8 * 9 + 32 * 48 + 24 * 48
    assert _size(_export(made, tmp_path, Precision.SPARSE)) < elements * (4 * 0.25 + 1 / 8) + 2048


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
@pytest.mark.parametrize("name", ["palettized8", "palettized6", "palettized4", "palettized2", "palettized1", "sparse"])
def test_one_table_and_zeros_before_ios18(net: ir.Model, tmp_path: Path, name: str, target: str) -> None:
    made = quantize_as(net, None, Precision(name)).model
    feeds = random_feeds(net)
    path = _export(made, tmp_path, Precision(name), target)
    assert any(kind.startswith("constexpr") for kind in _ops(path))
    want = reference(made, feeds)
    with open_package(path) as session:
        assert relative_error(session.run(feeds), want) < 1e-5
    assert relative_error(run_package(path, feeds), want) < 1e-5


@pytest.mark.parametrize(
    ("name", "compression", "target", "needed"),
    [
        ("palettized4", GROUPED, "iOS17", "iOS18"),
        ("palettized4", Compression(int8_table=True), "iOS17", "iOS18"),
        ("palettized3", Compression(), "iOS17", "iOS18"),
        ("sparse-int8", Compression(), "iOS17", "iOS18"),
        ("sparse-palettized4", Compression(), "iOS16", "iOS18"),
        ("palettized4", Compression(), "iOS15", "iOS16"),
        ("sparse", Compression(), "iOS15", "iOS16"),
    ],
)
def test_what_the_target_lacks_is_refused(
    net: ir.Model, tmp_path: Path, name: str, compression: Compression, target: str, needed: str
) -> None:
    made = quantize_as(net, None, Precision(name), QuantizeOptions(compression=compression)).model
    with pytest.raises(UnsupportedModel, match=f"need {needed}, the deployment target is {target}"):
        _export(made, tmp_path, Precision(name), target)


def test_half_computation_halves_tables_too(net: ir.Model, tmp_path: Path) -> None:
    made = quantize_as(net, None, Precision.PALETTIZED4).model
    feeds = random_feeds(net)
    path = _export(made, tmp_path, Precision.PALETTIZED4, half=True)
    with open_package(path) as session:
        error = relative_error(session.run(feeds), reference(made, feeds))
    assert 1e-6 < error < 4 * 2.0**-10  # rounded, and by no more than a few roundings of float16


def test_a_mark_that_does_not_hold_is_told(net: ir.Model, tmp_path: Path) -> None:
    """A rewrite behind the scheme may change a weight: it is stored dense then, never wrong."""
    made = quantize_as(net, None, Precision.PALETTIZED2).model.clone()
    tensor = made.graph.initializers["w1"]
    changed = np.random.default_rng(0).standard_normal((32, 8, 3, 3)).astype(np.float32)
    tensor.const_value = ir.tensor(changed, name="w1")
    feeds = random_feeds(net)
    result = EXPORTER.export(made, tmp_path / "x.mlpackage", ExportOptions(Precision.PALETTIZED2, "iOS18"))
    assert any("w1" in note for note in result.notes)
    with open_package(result.path) as session:
        assert relative_error(session.run(feeds), reference(made, feeds)) < 1e-5
