"""Integer weights: what is stored, that the specification says so, and that every format computes the hub's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hub_session import open_hub
from compiler.hubfacts import hub_inputs
from compiler.importers import import_model
from compiler.passes import clean_up
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.schemes import quantize_as
from compiler.quantization.spec import Granularity, NodePrecision, QParams, read_spec
from profiles.registry import RegistryMiss
from profiles.schema import Precision
from runtimes.registry import open_session
from runtimes.session import Array

SUFFIX = {"onnx": ".onnx", "tflite": ".tflite", "coreml": ".mlpackage"}
NET = """
<ir_version: 10, opset_import: ["": 21]>
net (float[1, 16, 12, 12] image) => (float[1, 10] logits) {
  a = Conv <pads = [1, 1, 1, 1]> (image, full, bias)
  b = Relu (a)
  c = Conv <group = 64, pads = [1, 1, 1, 1]> (b, depth)
  d = GlobalAveragePool (c)
  e = Flatten (d)
  f = MatMul (e, left)
  g = Relu (f)
  logits = Gemm <transB = 1> (g, right, last)
}
"""
SHAPES = {
    "full": (64, 16, 3, 3),
    "bias": (64,),
    "depth": (64, 1, 3, 3),
    "left": (64, 96),
    "right": (10, 96),
    "last": (10,),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    model = onnx.parser.parse_model(NET)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return clean_up(import_model(str(path)).model)


@pytest.fixture(scope="module")
def feeds() -> dict[str, Array]:
    return {"image": np.random.default_rng(1).standard_normal((1, 16, 12, 12)).astype(np.float32)}


def _run(model: ir.Model, feeds: dict[str, Array]) -> Array:
    with open_hub(model) as session:
        return session.run(feeds)["logits"]


def _export(model: ir.Model, fmt: str, precision: Precision, folder: Path, target: str = "iOS18") -> Path:
    options = ExportOptions(precision=precision, deployment_target=target)
    return EXPORTERS.get(fmt).export(model, folder / f"net{SUFFIX[fmt]}", options).path


@pytest.mark.parametrize("fmt", SUFFIX)
@pytest.mark.parametrize("precision", [Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS])
def test_every_format_computes_the_hubs_numbers_in_fewer_bytes(
    fmt: str, precision: Precision, hub: ir.Model, feeds: dict[str, Array], tmp_path: Path
) -> None:
    quantized = quantize_as(hub, None, precision).model
    expected, plain = _run(quantized, feeds), _run(hub, feeds)
    path = _export(quantized, fmt, precision, tmp_path)
    with open_session(path) as session:
        got = session.run(feeds)["logits"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.ptp(expected))
    assert not np.allclose(got, plain, rtol=0, atol=1e-5 * np.ptp(plain))  # the weights did change
    size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())
    elements = sum(int(np.prod(s)) for s in SHAPES.values())
    assert size < elements * (1.0 if precision is Precision.INT4_WEIGHTS else 2.0)  # float32 takes 4 bytes each


def test_dynamic_kernels_quantize_their_inputs(hub: ir.Model, feeds: dict[str, Array], tmp_path: Path) -> None:
    """Eight bits of input leave an error between nothing and a step of a hundredth of the range."""
    quantized = quantize_as(hub, None, Precision.INT8_DYNAMIC).model
    expected = _run(quantized, feeds)
    for fmt in ("onnx", "tflite"):
        with open_session(_export(quantized, fmt, Precision.INT8_DYNAMIC, tmp_path)) as session:
            error = np.abs(session.run(feeds)["logits"] - expected).max() / np.ptp(expected)
        assert 1e-5 < error < 2e-2, fmt
    ops = [n.op_type for n in onnx.load(tmp_path / "net.onnx").graph.node]
    assert ops.count("MatMulInteger") == 2
    assert ops.count("DequantizeLinear") == 2  # the convolutions'


def test_four_bits_are_not_for_every_weight(hub: ir.Model) -> None:
    spec = quantize_as(hub, None, Precision.INT4_WEIGHTS).spec
    found = {d.op_type: d.reason for d in spec.nodes.values() if d.precision is NodePrecision.WEIGHTS}
    assert "int4" in found["Gemm"]
    by_dtype = {c.node: c.params.dtype for c in spec.constants}
    assert sorted(by_dtype.values()) == ["int4", "int4", "int4", "int8"]
    assert any("too few" in d.reason for d in spec.nodes.values())


def test_blocks_follow_the_reduction_and_beat_channels(hub: ir.Model, feeds: dict[str, Array], tmp_path: Path) -> None:
    blocked = quantize_as(hub, None, Precision.INT4_WEIGHTS, QuantizeOptions(block_size=16))
    params = [c.params for c in blocked.spec.constants if c.params.granularity is Granularity.PER_BLOCK]
    assert sorted(p.scale.shape for p in params) == [(4, 96), (10, 6)]
    assert read_spec(blocked.spec.to_bytes()) == blocked.spec
    expected = _run(blocked.model, feeds)
    for fmt in ("onnx", "coreml", "tflite"):
        with open_session(_export(blocked.model, fmt, Precision.INT4_WEIGHTS, tmp_path)) as session:
            got = session.run(feeds)["logits"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_blocks_dequantize_as_the_standard_says() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 32)).astype(np.float32)
    scale = (np.abs(weight.reshape(6, 4, 8)).max(2) / 7).astype(np.float32)
    params = QParams("int4", scale, axis=1, narrow=True, block_size=8)
    codes = params.quantize(weight)
    by_hand = codes.astype(np.float32).reshape(6, 4, 8) * scale[:, :, None]
    np.testing.assert_array_equal(params.dequantize(codes), by_hand.reshape(6, 32))
    assert np.abs(params.dequantize(codes) - weight).max() <= 0.5 * scale.max() * (1 + 1e-6)


@pytest.mark.parametrize("precision", [Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS])
def test_the_specification_round_trips_and_keeps_requests(precision: Precision, hub: ir.Model) -> None:
    last = next(str(n.name) for n in reversed(list(hub.graph)) if n.op_type == "Gemm")
    made = quantize_as(hub, None, precision, QuantizeOptions(keep_float=(last,)))
    assert read_spec(made.spec.to_bytes()) == made.spec
    assert made.spec.nodes[last].precision is NodePrecision.FLOAT32
    assert not any(c.node == last for c in made.spec.constants)


@pytest.mark.parametrize(
    ("precision", "target", "wanted"),
    [(Precision.INT8_WEIGHTS, "iOS15", "iOS16"), (Precision.INT4_WEIGHTS, "iOS17", "iOS18")],
)
def test_old_core_ml_targets_say_which_one_can(precision: Precision, target: str, wanted: str, hub: ir.Model) -> None:
    quantized = quantize_as(hub, None, precision).model
    options = ExportOptions(precision=precision, deployment_target=target)
    refusals = EXPORTERS.get("coreml").check(quantized, options)
    assert refusals
    assert all(wanted in r.reason for r in refusals)


def test_int8_has_a_pipeline_of_its_own(hub: ir.Model) -> None:
    with pytest.raises(RegistryMiss):
        quantize_as(hub, None, Precision.INT8)


@pytest.mark.parametrize("block_size", (None, 16))
def test_with_data_four_bits_are_rounded_by_what_they_do(hub: ir.Model, block_size: int | None) -> None:
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((16, 16)).astype(np.float32) / 4  # channels that go together, as in real images

    def images(count: int) -> Array:
        return np.einsum("nchw,cd->ndhw", rng.standard_normal((count, 16, 12, 12)).astype(np.float32), mixing)

    options = QuantizeOptions(block_size=block_size)
    data = make_dataset({"image": images(96)}, hub_inputs(hub), where="test")
    plain = quantize_as(hub, None, Precision.INT4_WEIGHTS, options)
    rounded = quantize_as(hub, data, Precision.INT4_WEIGHTS, options)
    assert any("second order" in note for note in rounded.spec.notes)
    assert rounded.spec.constants == plain.spec.constants  # the same scales: the codes differ, not their meaning
    unseen = [{"image": image[None]} for image in images(32)]

    def noise(model: ir.Model) -> float:
        return sum(float(((_run(model, feeds) - _run(hub, feeds)) ** 2).sum()) for feeds in unseen)

    assert noise(rounded.model) < 0.8 * noise(plain.model)
