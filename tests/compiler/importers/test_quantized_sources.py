"""Models that others quantized come through with the numbers that they have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from compiler.errors import DataError
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hub_session import open_hub
from compiler.importers import import_model
from compiler.importers.quantized import source_precision
from compiler.passes import clean_up
from compiler.passes.serialize import to_bytes
from compiler.request import BuildRequest, plan_build
from profiles.schema import Format, Precision
from runtimes.registry import open_session
from runtimes.session import Array, run_dataset
from tests.compiler.small_net import NET, save_net

RESIDUAL = NET.replace(
    "e = Clip (d, low, high)", "m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) e = Add (d, m)"
)


class _Reader(CalibrationDataReader):
    def __init__(self, samples: Array) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        sample = next(self._samples, None)
        return None if sample is None else {"image": sample[None]}


def images() -> Array:
    return np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32)


def by_onnxruntime(
    folder: Path,
    form: QuantFormat,
    activations: QuantType,
    weights: QuantType,
    *,
    per_channel: bool | None = None,
    extra: dict[str, bool] | None = None,
) -> Path:
    save_net(folder / "float.onnx", RESIDUAL)
    target = folder / "net.onnx"
    quantize_static(
        folder / "float.onnx",
        target,
        _Reader(images()),
        quant_format=form,
        activation_type=activations,
        weight_type=weights,
        per_channel=weights is QuantType.QInt8 if per_channel is None else per_channel,
        extra_options=extra or {},
    )
    return target


@pytest.mark.parametrize("form", (QuantFormat.QDQ, QuantFormat.QOperator))
@pytest.mark.parametrize(
    ("activations", "weights"),
    (
        (QuantType.QUInt8, QuantType.QInt8),
        (QuantType.QInt8, QuantType.QInt8),
        (QuantType.QUInt8, QuantType.QUInt8),
    ),
)
def test_onnxruntimes_quantizer(tmp_path: Path, form: QuantFormat, activations: QuantType, weights: QuantType) -> None:
    path = by_onnxruntime(tmp_path, form, activations, weights)
    assert source_precision(str(path)) is Precision.INT8
    imported = import_model(str(path))
    types = Counter(node.op_type for node in imported.model.graph)
    assert not any(name.startswith("QLinear") or name == "QGemm" for name in types)
    feeds = {"image": images()}
    want = run_dataset(imported.reference, feeds)["logits"]
    with open_hub(imported.model) as session:
        got = run_dataset(session, feeds)["logits"]
    step = float(np.ptp(want)) / 255
    assert np.abs(got - want).max() <= 1.01 * step  # QOperator kernels round in their own way
    assert (np.abs(got - want) < step / 2).mean() > 0.95
    again = clean_up(imported.model)
    assert to_bytes(again) == to_bytes(imported.model)
    imported.reference.close()


def test_integer_kernels_run_what_the_source_stored(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    imported = import_model(str(by_onnxruntime(tmp_path, QuantFormat.QDQ, QuantType.QInt8, QuantType.QInt8)))
    result = EXPORTERS.get("tflite").export(imported.model, tmp_path / "m.tflite", ExportOptions(Precision.INT8))
    assert not any("float" in note for note in result.notes), result.notes
    feeds = {"image": images()}
    want = run_dataset(imported.reference, feeds)["logits"]
    with open_session(result.path) as session:
        got = run_dataset(session, feeds)["logits"]
    assert np.abs(got - want).max() <= 2.02 * float(np.ptp(want)) / 255


FILES = {Format.ONNX: "m.onnx", Format.TFLITE: "m.tflite", Format.COREML: "m.mlpackage"}


def lowered(
    path: Path, folder: Path, feeds: dict[str, Array], precision: Precision, formats: Iterable[Format] = FILES
) -> dict[Format, float]:
    """Import, export to every format, run: the largest difference from the source, in 255ths of the output's range."""
    imported = import_model(str(path))
    want = run_dataset(imported.reference, feeds)["logits"]
    imported.reference.close()
    hub, found = clean_up(imported.model), {}
    for fmt in formats:
        made = EXPORTERS.get(fmt.value).export(hub, folder / FILES[fmt], ExportOptions(precision))
        with open_session(made.path) as session:
            got = run_dataset(session, feeds)["logits"]
        found[fmt] = float(np.abs(got - want).max() / (np.ptp(want) / 255))
    return found


@pytest.mark.parametrize(
    ("activations", "weights", "per_channel", "extra"),
    (
        (QuantType.QInt8, QuantType.QInt8, True, {"WeightSymmetric": False}),
        (QuantType.QUInt8, QuantType.QUInt8, True, {}),
        (QuantType.QInt8, QuantType.QInt8, True, {"ActivationSymmetric": True}),
        (QuantType.QUInt8, QuantType.QInt8, False, {"ActivationSymmetric": True, "QuantizeBias": False}),
        (QuantType.QUInt8, QuantType.QInt8, True, {"AddQDQPairToWeight": True}),
        (QuantType.QUInt8, QuantType.QInt8, True, {"DedicatedQDQPair": True}),
    ),
    ids=("asymmetric-weights", "uint8-per-channel", "symmetric", "float-bias", "weights-as-float", "a-pair-per-reader"),
)
def test_onnxruntimes_settings_reach_every_format(
    tmp_path: Path, activations: QuantType, weights: QuantType, per_channel: bool, extra: dict[str, bool]
) -> None:
    path = by_onnxruntime(tmp_path, QuantFormat.QDQ, activations, weights, per_channel=per_channel, extra=extra)
    assert source_precision(str(path)) is Precision.INT8
    found = lowered(path, tmp_path, {"image": images()}, Precision.INT8)
    assert max(found.values()) <= 2.02, found


@pytest.mark.parametrize("activations", (QuantType.QInt16, QuantType.QUInt16))
def test_sixteen_bit_activations(tmp_path: Path, activations: QuantType) -> None:
    path = by_onnxruntime(tmp_path, QuantFormat.QDQ, activations, QuantType.QInt8)
    assert source_precision(str(path)) is Precision.INT16X8
    found = lowered(path, tmp_path, {"image": images()}, Precision.INT16X8, tuple(Format))
    assert max(found.values()) <= 0.1, found  # a tenth of an int8 step is 25 codes


# As NNCF 3.4 writes it: int8 where values are negative, uint8 behind ReLU, no zero point but 0 or 128, a scale per channel in front
# of a depthwise convolution, weights stored as int8 codes, biases in float.
BY_NNCF = """<ir_version: 10, opset_import: ["": 21]>
net (float[1, 4, 8, 8] image) => (float[1, 4] logits)
<float s = {0.03}, int8 z = {0}, float[8] t = {0.02, 0.01, 0.03, 0.02, 0.015, 0.02, 0.01, 0.02},
 uint8[8] u = {0, 0, 0, 0, 0, 0, 0, 0}, float v = {0.02}, uint8 k = {0}> {
  q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s, z)
  w1d = DequantizeLinear <axis = 0> (w1, w1s, w1z)
  c = Conv <pads = [1, 1, 1, 1]> (d, w1d, b1) r = Relu (c)
  q2 = QuantizeLinear <axis = 1> (r, t, u) d2 = DequantizeLinear <axis = 1> (q2, t, u)
  w2d = DequantizeLinear <axis = 0> (w2, w2s, w2z)
  e = Conv <group = 8, pads = [1, 1, 1, 1]> (d2, w2d) f = Relu (e)
  q3 = QuantizeLinear (f, v, k) d3 = DequantizeLinear (q3, v, k)
  p = GlobalAveragePool (d3) g = Flatten (p)
  q4 = QuantizeLinear (g, v, k) d4 = DequantizeLinear (q4, v, k)
  w3d = DequantizeLinear <axis = 1> (w3, w3s, w3z)
  logits = Gemm (d4, w3d, b3)
}"""
# As AIMET 2.42 writes it: everything uint8 around 128 or 0, weights symmetric per channel, int32 biases with a zero point array.
BY_AIMET = """<ir_version: 10, opset_import: ["": 21]>
net (float[1, 4, 8, 8] image) => (float[1, 4] logits)
<float s = {0.03}, uint8 z = {128}, float t = {0.02}, uint8 u = {0}, float o = {0.05}, uint8 oz = {131}> {
  q = QuantizeLinear (image, s, z) d = DequantizeLinear (q, s, z)
  w1d = DequantizeLinear <axis = 0> (w1, w1s, w1z) b1d = DequantizeLinear <axis = 0> (b1q, b1s, b1z)
  c = Conv <pads = [1, 1, 1, 1]> (d, w1d, b1d) r = Relu (c)
  q2 = QuantizeLinear (r, t, u) d2 = DequantizeLinear (q2, t, u)
  p = GlobalAveragePool (d2) q3 = QuantizeLinear (p, t, u) d3 = DequantizeLinear (q3, t, u)
  g = Flatten (d3) q4 = QuantizeLinear (g, t, u) d4 = DequantizeLinear (q4, t, u)
  w3d = DequantizeLinear <axis = 1> (w3, w3s, w3z)
  y = Gemm (d4, w3d, b3) q5 = QuantizeLinear (y, o, oz) logits = DequantizeLinear (q5, o, oz)
}"""


def stored(text: str, path: Path) -> Path:
    """The text with seeded constants: codes of the weights, their scales and zero points."""
    rng = np.random.default_rng(4)
    model = onnx.parser.parse_model(text)
    arrays: dict[str, Array] = {
        "b1": rng.normal(0, 0.2, 8).astype(np.float32),
        "b3": rng.normal(0, 0.5, 4).astype(np.float32),
    }
    for name, shape, axis in (("w1", (8, 4, 3, 3), 0), ("w2", (8, 1, 3, 3), 0), ("w3", (8, 4), 1)):
        arrays[name] = rng.integers(-127, 128, shape).astype(np.int8)
        arrays[f"{name}s"] = rng.uniform(0.001, 0.003, shape[axis]).astype(np.float32)
        arrays[f"{name}z"] = np.zeros(shape[axis], np.int8)
    arrays["b1s"] = np.float32(0.03) * arrays["w1s"]
    arrays |= {"b1q": rng.integers(-900, 900, 8).astype(np.int32), "b1z": np.zeros(8, np.int32)}
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in read)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("text", (BY_NNCF, BY_AIMET), ids=("NNCF", "AIMET"))
def test_the_forms_of_other_tools_reach_every_format(tmp_path: Path, text: str) -> None:
    path = stored(text, tmp_path / "net.onnx")
    feeds = {"image": np.random.default_rng(0).standard_normal((16, 4, 8, 8)).astype(np.float32)}
    found = lowered(path, tmp_path, feeds, Precision.INT8)
    assert max(found.values()) <= 2.02, found


OPERATORS = """<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
g (float[1,4,6,6] x) => (float[1,8,1,1] y)
<float s = {0.02}, uint8 z = {120}, float t = {0.05}, uint8 u = {100}, float h = {0.00390625}, uint8 zero = {0}> {
  q = QuantizeLinear(x, s, z)
  g1 = com.microsoft.QLinearSigmoid(q, s, z, h, zero)
  l = com.microsoft.QLinearLeakyRelu<alpha = 0.1>(q, s, z, t, u)
  m = com.microsoft.QLinearMul(l, t, u, g1, h, zero, s, z)
  a = com.microsoft.QLinearAdd(m, s, z, q, s, z, t, u)
  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)
  v = com.microsoft.QLinearAveragePool<kernel_shape = [3, 3]>(p, t, u, s, z)
  w = com.microsoft.QLinearGlobalAveragePool(p, t, u, s, z)
  c = com.microsoft.QLinearConcat<axis = 1>(t, u, v, s, z, w, s, z)
  y = DequantizeLinear(c, t, u)
}"""


def test_onnxruntimes_own_operators(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(OPERATORS), path)
    imported = import_model(str(path))
    feeds = {"x": np.random.default_rng(1).uniform(-2.5, 2.5, (1, 4, 6, 6)).astype(np.float32)}
    with open_hub(imported.model) as session:
        steps = np.abs(session.run(feeds)["y"] - imported.reference.run(feeds)["y"]) / 0.05
    assert steps.max() <= 2.01  # each of the source's kernels may round one step away
    assert (steps < 0.5).mean() >= 0.5


def test_dynamic_quantization_becomes_float_operators(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    save_net(tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "net.onnx")
    assert source_precision(str(tmp_path / "net.onnx")) is None
    imported = import_model(str(tmp_path / "net.onnx"))
    feeds = {"image": images()[:1]}
    with open_hub(imported.model) as session:
        np.testing.assert_allclose(
            session.run(feeds)["logits"], imported.reference.run(feeds)["logits"], rtol=1e-4, atol=1e-5
        )


def test_a_build_makes_what_the_source_is(tmp_path: Path) -> None:
    from compiler.pipeline import build

    path = by_onnxruntime(tmp_path, QuantFormat.QDQ, QuantType.QInt8, QuantType.QInt8)
    np.savez(tmp_path / "data.npz", image=images())
    report = build(BuildRequest(str(path), tmp_path / "out", evaluate=str(tmp_path / "data.npz")))
    assert {(a.format, a.precision) for a in report.artifacts} == {(f.value, "int8") for f in Format}
    document = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert document["schemes"]["int8"]["scheme"] == "int8, with the numbers of the source"
    assert all(pair["share_within_two"] >= 0.99 for pair in document["agreement"])


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"precisions": (Precision.FP32,)}, "cannot be made from it"),
        ({"prune": 0.2, "calibration": "x.npz"}, "--prune changes the numbers"),
        ({"effort": "high"}, "--effort high changes the numbers"),
    ),
)
def test_a_request_that_would_change_it_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = by_onnxruntime(tmp_path, QuantFormat.QDQ, QuantType.QInt8, QuantType.QInt8)
    with pytest.raises(DataError, match=message):
        plan_build(BuildRequest(str(path), tmp_path / "out", **change))  # type: ignore[arg-type]


def test_float_files_and_damaged_ones_are_not_quantized(tmp_path: Path) -> None:
    save_net(tmp_path / "net.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\xff nothing")
    (tmp_path / "broken.tflite").write_bytes(b"\x00\x00\x00\x00TFL3nothing")
    assert [source_precision(str(tmp_path / n)) for n in ("net.onnx", "broken.onnx", "broken.tflite", "none.onnx")] == [
        None
    ] * 4


@pytest.mark.realdata
@pytest.mark.parametrize("name", ("kws", "vww", "ic"))
def test_mlperfs_int8_files(realdata: Path, name: str) -> None:
    """The hub computes what LiteRT computes; a rounding differs on few of the elements."""
    path = realdata / name / "reference_int8.tflite"
    assert source_precision(str(path)) is Precision.INT8
    imported = import_model(str(path))
    try:
        (spec,) = imported.reference.inputs
        rng = np.random.default_rng(2)
        feeds = {spec.name: rng.uniform(0, 255 if name == "ic" else 1, (16, *spec.shape[1:])).astype(np.float32)}  # type: ignore[misc]
        want = run_dataset(imported.reference, feeds)
        with open_hub(imported.model) as session:
            got = run_dataset(session, feeds)
        ((key, found),) = got.items()
        assert (found == want[key]).mean() >= 0.9  # ic on noise: 0.93
        assert (found.argmax(1) == want[key].argmax(1)).all()
    finally:
        imported.reference.close()
