"""Real networks against onnxruntime: float32, float16, and int8 made by onnxruntime's own static quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.compiler.exporters.coreml.interpreter import run_package
from tests.compiler.exporters.coreml.support import (
    Arrays,
    export,
    exported_answers,
    hub,
    random_feeds,
    reference,
    relative_error,
)

MODELS = ["kws", "ic", "vww", "ad"]


def _layers(model: ir.Model) -> int:
    return sum(node.op_type in ("Conv", "MatMul", "Gemm") for node in model.graph)


@pytest.mark.parametrize("name", MODELS)
def test_float32_matches_onnxruntime(realdata: Path, tmp_path: Path, name: str) -> None:
    model = hub(onnx.load(realdata / name / "model.onnx"))
    feeds = random_feeds(model)
    assert relative_error(exported_answers(model, feeds, tmp_path), reference(model, feeds)) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_float16_stays_within_its_rounding(realdata: Path, tmp_path: Path, name: str) -> None:
    """Every weight and every layer's result is rounded by at most u = 2**-11; to first order the roundings of the

    layers add up, each passed on by a gain of about one in a trained network, hence 2 * layers * u of the range.
    """
    model = hub(onnx.load(realdata / name / "model.onnx"))
    feeds = random_feeds(model)
    error = relative_error(exported_answers(model, feeds, tmp_path, "fp16"), reference(model, feeds))
    assert 0 < error <= 2 * _layers(model) * 2**-11


def quantized(proto: onnx.ModelProto, folder: Path, samples: list[Arrays]) -> onnx.ModelProto:
    """The model in QDQ form: int8 activations, symmetric int8 weights per channel, int32 biases."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> Any:
            return next(self.rest, None)

    source, result = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(proto, source)
    quantize_static(
        source,
        result,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    return onnx.load(result)


def activation_steps(model: ir.Model) -> dict[str, float]:
    """The scale of every quantized activation, by the name of its DequantizeLinear's output."""
    steps = {}
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value is None:
            scale = node.inputs[1]
            assert scale is not None and scale.const_value is not None
            steps[node.outputs[0].name or ""] = float(scale.const_value.numpy().reshape(-1)[0])
    return steps


def with_all_activations(proto: onnx.ModelProto) -> ir.Model:
    """The model with every quantized activation as an output, so that each is compared where it arises."""
    model = hub(proto)
    present = {value.name for value in model.graph.outputs}
    for node in model.graph:
        value = node.outputs[0]
        if value.name in activation_steps(model) and value.name not in present:
            model.graph.outputs.append(value)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_int8_agrees_within_one_step(realdata: Path, tmp_path: Path, name: str) -> None:
    """The same scales and zero points in both, so that only the order of float32 sums can part them.

    Compared on every quantized activation and, on its own, on the model's output.
    """
    float_hub = hub(onnx.load(realdata / name / "model.onnx"))
    samples = [random_feeds(float_hub, seed) for seed in range(4)]
    model = with_all_activations(quantized(ir.to_proto(float_hub), tmp_path, samples))
    path, _ = export(model, tmp_path, "int8")
    newer, _ = export(model, tmp_path, "int8", "iOS18")
    steps, output = activation_steps(model), model.graph.outputs[0].name or ""
    apart: dict[str, list[float]] = {key: [] for key in steps}
    for seed in range(100, 110):
        feeds = random_feeds(model, seed)
        got, want = run_package(path, feeds), _without_fusion(model, feeds)
        for key, step in steps.items():
            apart[key].extend((np.abs(got[key].astype(np.float64) - want[key]) / step).ravel())
    again = run_package(newer, feeds)
    assert all(np.array_equal(again[key], got[key]) for key in steps)  # other constexpr operation, same numbers
    assert np.mean(np.concatenate([np.array(a) for a in apart.values()]) <= 1.001) >= 0.99
    assert np.mean(np.array(apart[output]) <= 1.001) >= 0.99
    assert (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size < 1.2 * _weight_bytes(model)


def _without_fusion(model: ir.Model, feeds: Arrays) -> Arrays:
    """onnxruntime executing the QDQ nodes one by one: its integer kernels saturate on CPUs without VNNI."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _weight_bytes(model: ir.Model) -> int:
    """int8 weights, and 4 bytes for each bias, scale and zero point, and the blob file's 64-byte records."""
    arrays = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None]
    return sum(a.nbytes for a in arrays) + 192 * len(arrays)
