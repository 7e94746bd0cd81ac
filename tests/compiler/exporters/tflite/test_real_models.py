"""MLPerf Tiny's nets: float parity with onnxruntime, no transposes, identical bytes, and int8 from QDQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from profiles.schema import Precision
from runtimes.litert_session import OPENER
from runtimes.session import SessionOptions
from tests.compiler.exporters.tflite.support import (
    Array,
    export,
    hub,
    ops_in,
    reference,
    reference_runner,
    relative_error,
    run,
)

pytest.importorskip("ai_edge_litert")
NAMES = ("kws", "ic", "vww", "ad")


def _feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    shape = [dim.dim_value or 1 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return {model.graph.input[0].name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_float_parity_without_transposes(realdata: Path, tmp_path: Path, name: str) -> None:
    source = onnx.load(realdata / name / "model.onnx")
    model, feeds = hub(source), _feeds(source)
    result = export(model, tmp_path / "a.tflite")
    assert relative_error(run(result.path, feeds)["output"], reference(model, feeds)["output"]) <= 1e-4
    assert "TRANSPOSE" not in ops_in(result.path)
    export(hub(source), tmp_path / "b.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_float16_halves_the_file(realdata: Path, tmp_path: Path, name: str) -> None:
    source = onnx.load(realdata / name / "model.onnx")
    model, feeds = hub(source), _feeds(source)
    full = export(model, tmp_path / "full.tflite").path
    half = export(model, tmp_path / "half.tflite", Precision.FP16).path
    assert half.stat().st_size < 0.75 * full.stat().st_size
    # Weights carry 2**-11 relative rounding each; a few dozen layers accumulate it.
    assert relative_error(run(half, feeds)["output"], reference(model, feeds)["output"]) <= 2e-2


def test_kws_int8_agrees_with_onnxruntime(realdata: Path, tmp_path: Path) -> None:
    """At least 99 % of the outputs lie within one step of the output's scale of onnxruntime on the same QDQ."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    model = hub(onnx.load(realdata / "kws" / "model.onnx"))
    import onnx_ir as ir

    proto = ir.to_proto(model)
    onnx.save(proto, tmp_path / "float.onnx")
    recorded = np.load(realdata / "kws" / "samples.npz")
    real = (recorded["features_int8"].astype(np.float32) - recorded["zero_point"]) * recorded["scale"]
    samples = [{"input": sample[None].astype(np.float32)} for sample in real]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.rest = iter(samples[:100])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.rest, None)

    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "qdq.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    quantized = hub(onnx.load(tmp_path / "qdq.onnx"))
    result = export(quantized, tmp_path / "int8.tflite", Precision.INT8)
    reference_session, session = reference_runner(quantized), OPENER.open(result.path, SessionOptions())
    got = np.concatenate([session.run(feeds)["output"] for feeds in samples[100:400]])
    want = np.concatenate([reference_session(feeds)["output"] for feeds in samples[100:400]])
    scales = {v.name: v.const_value for v in quantized.graph.initializers.values()}
    step = float(scales["output_scale"].numpy())
    share = float((np.abs(got - want) <= 1.001 * step).mean())
    agreement = float((got.argmax(1) == want.argmax(1)).mean())
    accuracy = [float((o.argmax(1) == recorded["labels"][100:400]).mean()) for o in (got, want)]
    print(f"kws int8: {share:.4f} within one step, top-1 {agreement:.4f}, accuracy {accuracy}, {result.notes}")
    assert share >= 0.99
    assert agreement >= 0.99
    assert ops_in(result.path).count("QUANTIZE") <= 4
