"""Values in 16 bits inside an int8 model: what is widened and converted, that every format carries it, and that it helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.errors import DataError
from compiler.exporters import EXPORTERS
from compiler.exporters.base import ExportOptions
from compiler.hub_session import open_hub
from compiler.hubfacts import output_scales
from compiler.quantization.engine import Quantized, quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.candidate import candidate, make_bench
from compiler.quantization.rescue.wide import find_groups, measure, multiplications, widen_sensitive
from compiler.quantization.spec import NodePrecision, read_spec
from compiler.verification.metrics import parity
from profiles.schema import Precision
from runtimes.registry import open_session
from runtimes.session import Array, run_dataset
from tests.compiler.hub_models import hub
from tests.compiler.quantization.rescue.nets import samples, uneven_net

NET = """
net (float[1, 3, 8, 8] image) => (float[1, 5] logits) {
  a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
  a6 = Relu (a)
  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a6)
  d = Conv <pads = [1, 1, 1, 1]> (m, w2)
  s = Add (d, m)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  logits = Gemm <transB = 1> (f, w3, b3)
}
"""


def net() -> ir.Model:
    rng = np.random.default_rng(4)
    arrays = {
        "w1": rng.standard_normal((8, 3, 3, 3)) * 0.3,
        "b1": rng.standard_normal(8) * 0.1,
        "w2": rng.standard_normal((8, 8, 3, 3)) * 0.2,
        "w3": rng.standard_normal((5, 8)),
        "b3": rng.standard_normal(5),
    }
    return hub(NET, **{name: array.astype(np.float32) for name, array in arrays.items()})


def made(model: ir.Model, *wide: str) -> Quantized:
    return quantize(model, samples(model), QuantizeOptions(observer="min-max", wide=wide))


def answers(model: ir.Model, name: str = "logits") -> Array:
    with open_hub(model, taps=[name]) as session:
        return run_dataset(session, samples(model).feeds)[name]


def test_a_wide_value_takes_its_group_its_producers_and_its_readers_with_it() -> None:
    spec = made(net(), "m").spec
    assert {n for n, p in spec.activations.items() if p.dtype == "int16"} == {"a6", "m"}
    wide = {name for name, d in spec.nodes.items() if d.precision is NodePrecision.INT16X8}
    assert wide == {"Conv_0", "Relu_1", "MaxPool_2", "Conv_3", "Add_4"}
    assert [(c.node, c.value) for c in spec.conversions] == [
        ("Conv_0", "image"),
        ("Conv_3", "d"),
        ("Add_4", "d"),
        ("Add_4", "s"),
    ]
    for conversion in spec.conversions:
        own = spec.activations[conversion.value]
        assert own.dtype == "int8" and conversion.params.zero_point == 0
        assert conversion.params.low <= own.low and own.high <= conversion.params.high + 1e-6
    bias = spec.constant("Conv_0", 2)
    weight = spec.constant("Conv_0", 1)
    assert bias is not None and weight is not None
    np.testing.assert_array_equal(bias.scale, np.float32(spec.seen("Conv_0", "image").scale[0]) * weight.scale)


def test_conversions_survive_serialisation() -> None:
    spec = made(net(), "m").spec
    assert spec.conversions
    assert read_spec(spec.to_bytes()) == spec


def test_a_wide_value_is_rounded_256_times_finer() -> None:
    plain = answers(net(), "m")
    noise = [np.abs(answers(made(net(), *wide).model, "m") - plain).max() for wide in ((), ("m",))]
    # The image stays in eight bits and makes most of what is left; m's own steps are gone.
    spec = made(net(), "m").spec
    codes = answers(made(net(), "m").model, "m") / spec.activations["m"].scale[0]
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-2)
    assert noise[1] < noise[0]
    assert spec.activations["m"].scale[0] < made(net()).spec.activations["m"].scale[0] / 100


@pytest.mark.parametrize("wide", ["m", "s"])
def test_every_format_carries_16_bits_and_agrees(wide: str, tmp_path: Path) -> None:
    model = net()
    quantized = made(model, wide).model
    scale = output_scales(quantized)["logits"]
    want = answers(quantized)
    for name, suffix in (("onnx", ".onnx"), ("tflite", ".tflite"), ("coreml", ".mlpackage")):
        options = ExportOptions(Precision.INT8)
        assert EXPORTERS.get(name).check(quantized, options) == []
        path = EXPORTERS.get(name).export(quantized, tmp_path / f"net{suffix}", options).path
        with open_session(path) as session:
            steps = np.abs(run_dataset(session, samples(model).feeds)["logits"] - want) / scale
        assert (steps <= 1.01).all() and (steps < 0.01).mean() > 0.9, (name, steps.max(), (steps < 0.01).mean())


def test_tflite_computes_on_16_bits_where_the_plan_says_so(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    path = tmp_path / "net.tflite"
    result = EXPORTERS.get("tflite").export(made(net(), "m").model, path, ExportOptions(Precision.INT8))
    details = Interpreter(model_path=str(path), experimental_preserve_all_tensors=True)
    kinds = {(op["op_name"], str(np.dtype(_dtype(details, op["outputs"][0])))) for op in details._get_ops_details()}
    assert ("CONV_2D", "int16") in kinds and ("ADD", "int16") in kinds and ("MAX_POOL_2D", "int16") in kinds
    assert ("FULLY_CONNECTED", "int8") in kinds
    assert not any("float" in note for note in result.notes), result.notes


def _dtype(interpreter: object, index: int) -> type:
    found = {d["index"]: d["dtype"] for d in interpreter.get_tensor_details()}  # type: ignore[attr-defined]
    kind: type = found[index]
    return kind


def test_names_that_the_model_does_not_have_and_kernels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(DataError, match="does not have"):
        made(net(), "nothing")
    text = "net (float[1, 4] x) => (float[1, 4] y) { a = Elu (x)  y = Relu (a) }"
    model = hub(text)
    with pytest.raises(DataError, match=r"Elu .* no 16-bit kernel"):
        made(model, "a")


def test_the_rung_finds_the_value_that_eight_bits_do_not_carry() -> None:
    """Channels a hundredfold apart in one activation: 255 steps leave the smallest two of them, 65,535 leave it hundreds."""
    model = uneven_net(ratio=100.0)
    bench = make_bench(model, samples(model))
    start = candidate(model, bench.train, QuantizeOptions(observer="min-max"))
    groups = find_groups(start)
    assert all("logits" not in group.values for group in groups)
    table = {s.node: s.gain_db for s in measure(start, bench, groups)}
    assert max(table, key=lambda name: table[name]) == "a6"
    scores = [bench.score(one.quantized().model).sqnr_db for _, one in widen_sensitive(start, bench)]
    assert max(scores) > bench.score(start.quantized().model).sqnr_db + 6.0, scores
    assert all(one.weight_bytes() == start.weight_bytes() for _, one in widen_sensitive(start, bench))


def test_sensitivity_is_what_quantizing_anew_with_the_group_gains() -> None:
    model = net()
    bench = make_bench(model, samples(model))
    start = candidate(model, bench.train, QuantizeOptions(observer="min-max"))
    table = {s.node: s for s in measure(start, bench, find_groups(start))}
    few = bench.train.take(32)

    def snr(*wide: str) -> float:
        coded = quantize(model, bench.train, QuantizeOptions(observer="min-max", wide=wide)).model
        results = []
        for one in (coded, model):
            with open_hub(one) as session:
                results.append(run_dataset(session, few.feeds))
        return parity(*results).snr_db

    assert table["s"].gain_db == pytest.approx(snr("s") - snr(), abs=1e-6)


def test_multiplications_are_counted_as_by_hand() -> None:
    found = {node.name: multiplications(node) for node in net().graph}
    assert found["Conv_0"] == 8 * 8 * 8 * 27
    assert found["Conv_3"] == 8 * 4 * 4 * 72
    assert found["Gemm_7"] == 5 * 8
    assert found["MaxPool_2"] == 8 * 4 * 4
