"""Integers that no runtime's arithmetic can change: every pair of codes through onnxruntime and LiteRT, which share no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.calibration.collect import Calibration
from compiler.calibration.observers import Range
from compiler.exporters.base import ExportOptions
from compiler.exporters.tflite import EXPORTER
from compiler.exporters.tflite.tensors import per_tensor
from compiler.exporters.tflite.writer import GraphWriter
from compiler.hub_session import open_hub
from compiler.quantization import agreeing, fixed_point
from compiler.quantization.perform import perform
from compiler.quantization.plan import QuantizeOptions, plan
from compiler.quantization.spec import QParams, QuantizationSpec
from profiles.schema import Precision
from runtimes.registry import open_session
from runtimes.session import Array
from tests.compiler.hub_models import hub

PAIRS = 256 * 256
CODES = np.arange(-128, 128)
SUM = f"g (float[1, {PAIRS}] a, float[1, {PAIRS}] b) => (float[1, {PAIRS}] y) {{ y = OP (a, b) }}"
SWISH = "g (float[1, 256] a) => (float[1, 256] y) { y = HardSwish (a) }"
SIGMOID = "g (float[1, 256] a) => (float[1, 256] y) { y = HardSigmoid <alpha = 0.16666667, beta = 0.5> (a) }"
Ranges = Mapping[str, tuple[float, float]]


def planned(model: ir.Model, ranges: Ranges, options: QuantizeOptions | None = None) -> QuantizationSpec:
    observed = {name: Range(low, high, low, high) for name, (low, high) in ranges.items()}
    return plan(model, Calibration(observed, "min-max", 1, ""), options)


def both(model: ir.Model, spec: QuantizationSpec, codes: Mapping[str, Array], folder: Path) -> tuple[Array, Array]:
    """The output's codes from onnxruntime and from LiteRT, for inputs that are exact multiples of their scales."""
    quantized = perform(model, spec)
    feeds = {name: spec.activations[name].dequantize(array)[None] for name, array in codes.items()}
    with open_hub(quantized) as session:
        want = session.run(feeds)["y"]
    made = EXPORTER.export(quantized, folder / "m.tflite", ExportOptions(Precision.INT8))
    with open_session(made.path) as session:
        got = session.run(feeds)["y"]
    params = spec.activations["y"]
    return params.quantize(want).ravel(), params.quantize(got).ravel()


def ranges(seed: int) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(seed)
    low, high = -rng.uniform(0.5, 4, 3), rng.uniform(0.5, 4, 3)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate("aby")}


@pytest.mark.parametrize("op", ["Add", "Sub"])
@pytest.mark.parametrize("seed", range(4))
def test_every_pair_of_codes_adds_up_to_the_same_code(op: str, seed: int, tmp_path: Path) -> None:
    model = hub(SUM.replace("OP", op))
    spec = planned(model, ranges(seed))
    pairs = {"a": np.repeat(CODES, 256), "b": np.tile(CODES, 256)}
    want, got = both(model, spec, pairs, tmp_path)
    assert np.array_equal(want, got)
    assert len(np.unique(got)) > 100


def test_most_scales_do_not_agree_by_themselves() -> None:
    """What the search is for: without it few sums are safe on all pairs."""
    safe = 0
    for seed in range(20):
        found = {
            name: QParams("int8", np.array([(high - low) / 255], np.float32), 0)
            for name, (low, high) in ranges(seed).items()
        }
        safe += agreeing.Sum("y", (("a", 1.0), ("b", 1.0))).agrees(found)
    assert safe < 10


def test_a_sums_scale_grows_by_less_than_a_thousandth() -> None:
    for seed in range(10):
        wanted = ranges(seed)
        spec = planned(hub(SUM.replace("OP", "Add")), wanted)
        own = np.float32((wanted["y"][1] - wanted["y"][0]) / 255)
        assert own <= spec.activations["y"].scale[0] <= own * 1.001
        assert spec.activations["a"].scale[0] == np.float32((wanted["a"][1] - wanted["a"][0]) / 255)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("reach", [1.0, 9.0])  # below, HARD_SWISH in 16 bits; above, 3 in whole steps
def test_every_code_has_the_same_hard_swish(reach: float, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    low, high = -reach * rng.uniform(0.5, 1), reach * rng.uniform(0.5, 1)
    model = hub(SWISH)
    spec = planned(model, {"a": (low, high), "y": (-0.4, high)})
    want, got = both(model, spec, {"a": CODES}, tmp_path)
    assert np.array_equal(want, got)
    steps = 3 / float(spec.activations["a"].scale[0])
    assert (abs(steps - round(steps)) < 1e-5) == (reach > 3)


def test_a_hard_sigmoid_is_exact(tmp_path: Path) -> None:
    model = hub(SIGMOID)
    for high in (2.0, 4.5):
        spec = planned(model, {"a": (-3.7, high), "y": (0.0, 1.0)})
        want, got = both(model, spec, {"a": CODES}, tmp_path)
        assert np.array_equal(want, got)


def test_the_wide_hard_swish_is_no_kernel_of_its_own(tmp_path: Path) -> None:
    """Three operators that delegates have, instead of one that they have not."""
    from ai_edge_litert.interpreter import Interpreter

    model = hub(SWISH)
    quantized = perform(model, planned(model, {"a": (-5.0, 5.0), "y": (-0.4, 5.0)}))
    made = EXPORTER.export(quantized, tmp_path / "m.tflite", ExportOptions(Precision.INT8))
    interpreter = Interpreter(model_path=str(made.path))
    interpreter.allocate_tensors()
    names = [operator["op_name"] for operator in interpreter._get_ops_details()]
    assert [name for name in names if name in ("ADD", "MUL", "HARD_SWISH")] == ["ADD", "MUL", "MUL"]


def test_prescribed_and_wide_scales_stay() -> None:
    text = """g (float[1, 8] a, float[1, 8] b) => (float[1, 8] y)
    { s = Sigmoid (a) t = Sigmoid (b) y = Add (s, t) }"""
    spec = planned(hub(text), {"a": (-5.0, 5.0), "b": (-4.0, 4.0), "s": (0.0, 1.0), "t": (0.0, 1.0), "y": (0.0, 1.9)})
    assert spec.activations["s"].scale[0] == spec.activations["t"].scale[0] == np.float32(1 / 256)
    wide = planned(hub(SUM.replace("OP", "Add")), ranges(0), QuantizeOptions(activations="int16"))
    assert wide.activations["y"].scale[0] == np.float32(max(map(abs, ranges(0)["y"])) / 32767)


@pytest.mark.parametrize("seed", range(10))
def test_the_hard_swish_in_16_bits_is_litert_s(seed: int) -> None:
    from ai_edge_litert.interpreter import Interpreter

    rng = np.random.default_rng(seed)
    step = float(3 / rng.uniform(20, 600))
    scales, points = (step, float(step * rng.uniform(0.2, 1))), (int(rng.integers(-90, 90)), int(rng.integers(-128, 0)))
    writer = GraphWriter()
    x, y = (
        writer.tensor(name, (256,), np.dtype(np.int8), per_tensor(scale, point))
        for name, scale, point in zip("xy", scales, points, strict=True)
    )
    writer.operator("HARD_SWISH", [x], [y])
    content = writer.finish([("x", x)], [("y", y)], description="", metadata={})
    interpreter = Interpreter(model_content=bytes(content))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], CODES.astype(np.int8))
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    source, result = (
        QParams("int8", np.array([scale], np.float32), point) for scale, point in zip(scales, points, strict=True)
    )
    assert np.array_equal(got, fixed_point.hard_swish(source, result))


@pytest.mark.parametrize("low", [-2.9, -2.89, -0.6, 0.0])  # zero points of either parity
def test_halves_of_an_average_are_even_everywhere(low: float, tmp_path: Path) -> None:
    """Also of codes that a sum wrote: one scale for both demands."""
    text = """g (float[1, 1, 32, 32] a, float[1, 1, 32, 32] b) => (float[1, 1, 16, 16] y)
    { s = Add (a, b) y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s) }"""
    model = hub(text)
    spec = planned(model, {"a": (-1.7, 2.1), "b": (-1.1, 0.7), "s": (low, 2.3), "y": (low, 2.3)})
    rng = np.random.default_rng(0)
    codes = {name: rng.integers(-128, 128, (1, 32, 32)) for name in "ab"}
    want, got = both(model, spec, codes, tmp_path)
    assert np.array_equal(want, got)
    shared = spec.activations["y"]
    assert spec.activations["s"].scale[0] == shared.scale[0]
    half = shared.scale[0] / 2  # what rounding a zero point may take from either end
    assert shared.low <= low + half and shared.high >= 2.3 - half


@pytest.mark.parametrize("seed", range(4))
def test_means_are_equal(seed: int, tmp_path: Path) -> None:
    model = hub("g (float[1, 512, 4, 4] a) => (float[1, 512, 1, 1] y) { y = GlobalAveragePool (a) }")
    spec = planned(model, {"a": ranges(seed)["a"], "y": (-0.3, 0.4)})
    codes = np.random.default_rng(seed).integers(-128, 128, (512, 4, 4))
    want, got = both(model, spec, {"a": codes}, tmp_path)
    assert np.array_equal(want, got)
    steps = agreeing.Sum("y", (("a", 1.0),), count=16)
    assert steps.agrees(dict(spec.activations))
