"""Every quantized layer, fed onnxruntime's integers, within one step of them on at least 99 % of its elements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import make_dataset
from compiler.exporters.tflite import EXPORTER
from compiler.hubfacts import hub_inputs
from compiler.passes import clean_up
from compiler.quantization.engine import quantize
from compiler.quantization.plan import QuantizeOptions
from compiler.verification.layerwise import LayerAgreement, agreement, layers, worst_share
from tests.compiler.exporters.tflite.support import hub, text

pytest.importorskip("ai_edge_litert")

# The parts of MobileNetV3, a squeeze with its gate, a residual, an attention, a concatenation.
NETS = {
    "squeeze": """float[1,3,12,12] x) => (float[1,10] y) {
      a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w_8_3_3_3, b_8) h = HardSwish(a)
      d = Conv<group = 8, pads = [1, 1, 1, 1]>(h, w_8_1_3_3) r = Relu(d)
      p = GlobalAveragePool(r) s = Conv(p, w_8_8_1_1) g = HardSigmoid<alpha = 0.1666666716337204, beta = 0.5>(s)
      m = Mul(r, g) o = Add(m, h) q = GlobalAveragePool(o) f = Flatten(q) y = Gemm<transB = 1>(f, w_10_8, b_10) }""",
    "attention": """float[1,6,16] x) => (float[1,6,16] y) {
      q = MatMul(x, w_16_16) k = MatMul(x, v_16_16) t = Transpose<perm = [0, 2, 1]>(k)
      s = MatMul(q, t) a = Softmax<axis = -1>(s) o = MatMul(a, x) r = Add(o, x) n = Sigmoid(r) y = Mul(r, n) }""",
    "branches": """float[1,4,8,8] x) => (float[1,12,4,4] y) {
      a = Conv(x, w_4_4_1_1) b = Tanh(x) m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)
      v = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(b)
      c = Conv<kernel_shape = [2, 2], strides = [2, 2]>(x, w_4_4_2_2) l = LeakyRelu<alpha = 0.2>(c)
      y = Concat<axis = 1>(m, v, l) }""",
}


def net(name: str) -> ir.Model:
    source = text(f'<ir_version: 10, opset_import: ["": 21]> g ({NETS[name]}')
    rng = np.random.default_rng(11)
    for value in sorted({v for node in source.graph.node for v in node.input if v[:2] in ("w_", "v_", "b_")}):
        shape = [int(size) for size in value.split("_")[1:]]
        source.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 2, value)
        )
    return hub(source)


def quantized(model: ir.Model, samples: int = 32) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The hub in INT8, and data that calibration did not see."""
    spec = hub_inputs(model)[0]
    rng = np.random.default_rng(1)
    data = rng.standard_normal((samples, *spec.shape[1:])).astype(np.float32)  # type: ignore[misc]
    made = quantize(model, make_dataset({spec.name: data}, hub_inputs(model), where="test"), QuantizeOptions()).model
    return made, {spec.name: rng.standard_normal((8, *spec.shape[1:])).astype(np.float32)}  # type: ignore[misc]


def summary(found: list[LayerAgreement]) -> list[tuple[str, float, int]]:
    return [("+".join(one.op_types), one.share_equal, one.max_steps) for one in found]


@pytest.mark.parametrize("name", sorted(NETS))
def test_layers_agree(name: str) -> None:
    model, feeds = quantized(net(name))
    found = agreement(model, feeds, EXPORTER)
    assert len(found) >= 7
    assert worst_share(found) >= 0.99, summary(found)
    assert not any("float" in note for one in found for note in one.notes), summary(found)
    for one in found:
        if set(one.op_types) & {"Conv", "Gemm", "HardSigmoid", "MaxPool", "Reshape", "Concat", "Softmax"}:
            # Bit by bit, up to ties of the requantization; a HardSigmoid that rounds twice is off on every second element.
            assert one.share_equal >= 0.98, summary(found)


@pytest.mark.parametrize("name", ("vww", "kws"))
def test_layers_of_trained_nets_agree(realdata: Path, name: str) -> None:
    model, feeds = quantized(clean_up(hub(onnx.load(realdata / name / "model.onnx"))))
    found = agreement(model, feeds, EXPORTER)
    assert worst_share(found) >= 0.99, summary(found)


def test_a_layer_is_a_model_from_quantization_to_quantization() -> None:
    model, _ = quantized(net("squeeze"))
    parts = layers(model)
    assert {"Conv", "HardSwish", "HardSigmoid", "GlobalAveragePool", "Add", "Mul", "Gemm"} <= {
        op_type for part in parts for op_type in part.op_types
    }
    add = next(part for part in parts if "Add" in part.op_types)
    assert len(add.inputs) == 2
    assert [node.op_type for node in add.model.graph].count("QuantizeLinear") == 3


def test_a_wrong_layer_is_seen() -> None:
    """The check can fail: an exporter that changes a scale is off in the layer that reads it."""
    model, feeds = quantized(net("squeeze"))

    class Wrong:
        format, suffix = EXPORTER.format, EXPORTER.suffix
        check = EXPORTER.check

        def export(self, model: ir.Model, destination: Path, options: object) -> object:
            changed = model.clone()
            for value in changed.graph.initializers.values():
                array = value.const_value.numpy() if value.const_value is not None else np.zeros(1)
                if array.dtype == np.int8 and array.ndim == 4:
                    value.const_value = ir.tensor((array // 2).astype(np.int8))
            return EXPORTER.export(changed, destination, options)  # type: ignore[arg-type]

    assert worst_share(agreement(model, feeds, Wrong())) < 0.9  # type: ignore[arg-type]
