"""Real models: kws accuracy against float and against onnxruntime's own quantizer; integer kernels engaged; ic, vww, ad sane."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.hub_session import open_hub
from compiler.quantization.engine import quantize
from compiler.quantization.unsigned import to_uint8
from runtimes.session import Array, run_dataset
from tests.compiler.hub_models import kernels, load_hub

pytestmark = pytest.mark.realdata

# Documented input ranges of the models without samples (realdata/README.md): ic raw 0..255, vww x / 255.
RANGES = {"ic": ((32, 32, 3), 0.0, 255.0), "vww": ((96, 96, 3), 0.0, 1.0), "ad": ((640,), -30.0, 20.0)}


def kws(realdata: Path) -> tuple[ir.Model, Array, Array]:
    samples = np.load(realdata / "kws" / "samples.npz")
    codes = samples["features_int8"].astype(np.float32)
    features = ((codes - samples["zero_point"]) * samples["scale"]).astype(np.float32)
    return load_hub(realdata / "kws" / "model.onnx"), features, samples["labels"]


def dataset_for(model: ir.Model, samples: Array) -> Dataset:
    with open_hub(model) as session:
        return make_dataset({session.inputs[0].name: samples}, session.inputs, where="test")


def answers(model: ir.Model, samples: Array) -> Array:
    with open_hub(model) as session:
        return run_dataset(session, {session.inputs[0].name: samples})[session.outputs[0].name]


def snr_db(reference: Array, found: Array) -> float:
    wide = reference.astype(np.float64)
    return float(10 * np.log10((wide**2).sum() / ((wide - found) ** 2).sum()))


def test_kws_int8_is_within_one_point_of_float(realdata: Path, record_property: Callable[[str, object], None]) -> None:
    model, features, labels = kws(realdata)
    result = quantize(model, dataset_for(model, features[:100]))
    plain, coded = answers(model, features), answers(result.model, features)
    accuracy = [float((found.argmax(1) == labels).mean()) for found in (plain, coded)]
    record_property("accuracy_float_int8", accuracy)
    assert abs(accuracy[0] - accuracy[1]) <= 0.01, accuracy
    assert (plain.argmax(1) == coded.argmax(1)).mean() >= 0.98
    assert not result.spec.float_nodes


def test_kws_is_no_worse_than_onnxruntimes_own_quantizer(
    realdata: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Both calibrated on the same 100 samples, compared on the float model's answers."""
    model, features, _ = kws(realdata)
    ours = answers(quantize(model, dataset_for(model, features[:100])).model, features)
    theirs = answers(_quantize_static(model, features[:100], tmp_path), features)
    plain = answers(model, features)
    figures = {"ours": snr_db(plain, ours), "onnxruntime": snr_db(plain, theirs)}
    record_property("snr_db", figures)
    assert figures["ours"] > figures["onnxruntime"] - 1.0, figures


def _quantize_static(model: ir.Model, samples: Array, folder: Path) -> ir.Model:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(samples)

        def get_next(self) -> dict[str, Array] | None:
            row = next(self._rows, None)
            return None if row is None else {"input": row[np.newaxis]}

    source, target = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(ir.to_proto(model), source)
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return ir.load(target)


@pytest.mark.parametrize("name", ["kws", "ic", "vww"])
def test_integer_kernels_are_engaged(realdata: Path, tmp_path: Path, name: str) -> None:
    model = load_hub(realdata / name / "model.onnx")
    shape, low, high = RANGES.get(name, ((49, 10, 1), -120.0, 25.0))
    samples = np.random.default_rng(0).uniform(low, high, (8, *shape)).astype(np.float32)
    convolutions = sum(node.op_type == "Conv" for node in model.graph)
    coded = quantize(model, dataset_for(model, samples)).model
    for found in (kernels(coded, tmp_path, int8=True), kernels(to_uint8(coded), tmp_path, int8=False)):
        assert found["QLinearConv"] == convolutions
        assert not {"Conv", "MatMul", "Gemm", "Add", "Relu", "AveragePool", "Softmax"} & set(found), found
        assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1  # the model's input and output


@pytest.mark.parametrize("name", sorted(RANGES))
def test_models_without_samples_keep_their_signal(
    realdata: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    model = load_hub(realdata / name / "model.onnx")
    shape, low, high = RANGES[name]
    samples = np.random.default_rng(0).uniform(low, high, (40, *shape)).astype(np.float32)
    result = quantize(model, dataset_for(model, samples))
    found = snr_db(answers(model, samples), answers(result.model, samples))
    record_property("snr_db", found)
    assert found > 15.0


def test_uint8_gives_the_same_numbers(realdata: Path) -> None:
    model, features, _ = kws(realdata)
    coded = quantize(model, dataset_for(model, features[:50])).model
    steps = np.abs(answers(coded, features) - answers(to_uint8(coded), features)) * 256
    assert steps.max() <= 1.0
    assert (steps == 0).mean() >= 0.999
