"""Models that others quantized come through with the numbers that they have."""

from __future__ import annotations

import json
from collections import Counter
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


def by_onnxruntime(folder: Path, form: QuantFormat, activations: QuantType, weights: QuantType) -> Path:
    save_net(folder / "float.onnx", RESIDUAL)
    target = folder / "net.onnx"
    quantize_static(
        folder / "float.onnx",
        target,
        _Reader(images()),
        quant_format=form,
        activation_type=activations,
        weight_type=weights,
        per_channel=weights is QuantType.QInt8,
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
