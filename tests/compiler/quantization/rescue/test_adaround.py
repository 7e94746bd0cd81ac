"""AdaRound: blocks run in torch as onnxruntime runs them, codes move one step at most, and the block's output comes closer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.calibration.dataset import Dataset, make_dataset
from compiler.hubfacts import hub_inputs
from compiler.quantization.plan import QuantizeOptions
from compiler.quantization.rescue.adaround import round_adaptively, run_block
from compiler.quantization.rescue.blocks import block_data, find_blocks
from compiler.quantization.rescue.candidate import candidate, make_bench
from compiler.quantization.structure import constant_of, name_of
from tests.compiler.hub_models import hub
from tests.compiler.quantization.rescue.nets import samples, uneven_net

NET = """
net (float[1, 3, 9, 9] image) => (float[1, 5] y) {
  a = Conv <pads = [0, 1, 1, 0], strides = [2, 1], dilations = [1, 2]> (image, w1, b1)
  h = HardSwish (a)
  c = Conv <group = 2, auto_pad = "SAME_LOWER", strides = [2, 2]> (h, w2)
  l = LeakyRelu <alpha = 0.2> (c)
  s = Clip (l, low, high)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  g = Gemm (f, w3, b3)
  t = Tanh (g)
  y = Gemm <transB = 1> (t, w4)
}
"""


def net() -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (6, 4, 3, 3), "w3": (6, 7), "b3": (7,), "w4": (5, 7)}
    arrays = {name: (rng.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}
    return hub(NET, **arrays, low=np.float32(-0.4), high=np.float32(3.0))


def test_blocks_are_straight_runs_and_torch_computes_what_onnxruntime_does() -> None:
    import torch

    model = net()
    bench = make_bench(model, samples(model))
    start = candidate(model, bench.train, QuantizeOptions())
    blocks = find_blocks(start, start.quantized().model)
    assert [[node.op_type for node in block.nodes] for block in blocks] == [
        ["Conv", "HardSwish", "Conv", "LeakyRelu", "Clip"],
        ["Gemm", "Tanh", "Gemm"],
    ]
    plain = candidate(model, bench.train, QuantizeOptions(keep_float=tuple(name_of(n) for n in model.graph)))
    for block in blocks:
        inputs, targets = block_data(model, model, _in_float(block, model), bench.train)
        weights = {name_of(n): torch.from_numpy(np.array(constant_of(n.inputs[1]))) for n in block.layers}
        biases = {}
        for node in block.layers:
            array = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
            rows = weights[name_of(node)].shape[0 if node.op_type == "Conv" or node.attributes else 1]
            biases[name_of(node)] = torch.zeros(rows) if array is None else torch.from_numpy(np.array(array))
        found = run_block(block, torch.from_numpy(inputs), weights, biases, plain)
        np.testing.assert_allclose(found.numpy(), targets, atol=2e-5)


def _in_float(block: object, model: ir.Model) -> object:
    from dataclasses import replace

    source = block.nodes[0].inputs[0]  # type: ignore[attr-defined]
    return replace(block, source=source.name)  # type: ignore[type-var]


def coarse() -> tuple[ir.Model, Dataset]:
    """A layer whose rows have one weight thirty times the others, which leaves these four codes, on inputs of four dimensions."""
    rng = np.random.default_rng(0)
    weight = rng.uniform(-1, 1, (8, 16)).astype(np.float32)
    weight[:, 0] = 30.0
    model = hub("net (float[1, 16] x) => (float[1, 8] r) { g = Gemm <transB = 1> (x, w)  r = Relu (g) }", w=weight)
    inputs = (rng.standard_normal((96, 4)) @ rng.standard_normal((4, 16))).astype(np.float32)
    inputs[:, 0] = 0.01 * inputs[:, 1]
    return model, make_dataset({"x": inputs}, hub_inputs(model), where="test")


def test_learnt_codes_are_those_above_or_below_and_bring_the_output_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.quantization.rescue.adaround.STEPS", (60, 300))
    model, data = coarse()
    bench = make_bench(model, data)
    start = candidate(model, bench.train, QuantizeOptions(observer="min-max"))
    detail, made = next(iter(round_adaptively(start, bench)))
    assert detail == "1 layers in 1 blocks"
    params, weight, array = (
        start.spec.constant("Gemm_0", 1),
        constant_of(model.graph[0].inputs[1]),
        made.overrides["Gemm_0", 1],
    )
    assert params is not None and weight is not None
    exact = weight / np.broadcast_to(params.steps(weight.shape), weight.shape)
    codes = params.quantize(array).astype(np.float64)
    np.testing.assert_array_equal(params.dequantize(codes.astype(np.int8)), array)
    assert (np.abs(codes - exact) < 1 + 1e-3).all()
    assert (codes != np.rint(exact)).sum() > 10
    gain = bench.score(made.quantized().model).sqnr_db - bench.score(start.quantized().model).sqnr_db
    assert gain > 2.0


def test_the_same_data_gives_the_same_weights() -> None:
    model = uneven_net(ratio=3.0)
    bench = make_bench(model, samples(model))
    start = candidate(model, bench.train, QuantizeOptions())
    first, second = (next(iter(round_adaptively(start, bench)))[1].overrides for _ in range(2))
    assert {key: array.tobytes() for key, array in first.items()} == {k: a.tobytes() for k, a in second.items()}


def test_without_torch_the_rung_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    model = uneven_net()
    bench = make_bench(model, samples(model))
    start = candidate(model, bench.train, QuantizeOptions())
    monkeypatch.setitem(sys.modules, "torch", None)
    assert list(round_adaptively(start, bench)) == []
