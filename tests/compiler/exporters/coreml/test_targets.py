"""Every deployment target from iOS15 to the newest that coremltools knows: converted, read back, executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.errors import UnsupportedModel
from compiler.exporters.base import ExportOptions
from compiler.exporters.coreml import EXPORTER
from compiler.exporters.coreml.target import find_target, known_targets
from compiler.hub import KEEP_FLOAT32
from profiles.schema import Precision
from runtimes.coreml_reference.session import open_package
from runtimes.session import Array
from tests.compiler.exporters.coreml.support import (
    hub,
    parse,
    random_feeds,
    reference,
    relative_error,
)

TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")


def _weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(11)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def _picture_net() -> onnx.ModelProto:
    """Padding, strides, groups, pooling in both kinds, upsampling, concatenation, batch normalisation, a head."""
    text = """
    net (float[1, 3, 17, 16] x) => (float[1, 5] y) {
      a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1, b1)
      n = BatchNormalization (a, s, t, m, v)
      h = HardSwish (n)
      d = Conv <pads = [1, 1, 1, 1], group = 8> (h, w2)
      r = Clip (d, zero, six)
      p = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (r)
      q = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
      u = Resize <mode = "linear"> (p, , , sizes)
      k = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"> (q, , twice)
      sp, rest = Split <axis = 3, num_outputs = 2> (k)
      c = Concat <axis = 1> (u, k)
      g = GlobalAveragePool (c)
      f = Flatten (g)
      l = Gemm <transB = 1> (f, w3, b3)
      y = LogSoftmax (l)
    }
    """
    named: dict[str, Any] = _weights(
        w1=(8, 3, 3, 3), b1=(8,), w2=(8, 1, 3, 3), s=(8,), t=(8,), m=(8,), w3=(5, 16), b3=(5,)
    )
    named |= {"v": np.abs(named["s"]) + 1, "zero": np.float32(0), "six": np.float32(6)}
    return parse(text, **named, sizes=np.int64([1, 8, 10, 8]), twice=np.float32([1, 1, 2, 2]))


def _attention_net() -> onnx.ModelProto:
    """One pre-norm block: layer normalisation, attention over two heads, GELU."""
    text = """
    net (float[1, 6, 8] x) => (float[1, 6, 8] y) {
      n = LayerNormalization (x, g, b)
      q0 = MatMul (n, wq)
      k0 = MatMul (n, wk)
      v0 = MatMul (n, wv)
      q1 = Reshape (q0, heads)
      k1 = Reshape (k0, heads)
      v1 = Reshape (v0, heads)
      q = Transpose <perm = [0, 2, 1, 3]> (q1)
      k = Transpose <perm = [0, 2, 3, 1]> (k1)
      v = Transpose <perm = [0, 2, 1, 3]> (v1)
      raw = MatMul (q, k)
      scaled = Mul (raw, half)
      p = Softmax (scaled)
      o0 = MatMul (p, v)
      o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
      o = Reshape (o1, whole)
      r = Add (x, o)
      f = Gelu (r)
      y = Add (f, r)
    }
    """
    named = _weights(g=(8,), b=(8,), wq=(8, 8), wk=(8, 8), wv=(8, 8))
    shapes = {"heads": np.int64([1, 6, 2, 4]), "whole": np.int64([1, 6, 8]), "half": np.float32(0.5)}
    return parse(text, **named, **shapes)


def _selection_net() -> onnx.ModelProto:
    """What sorts, selects, counts and compares; integers on the way."""
    text = """
    net (float[1, 4, 6] x) => (float[1, 4, 3] y, int64[1, 4] best) {
      values, places = TopK <axis = 2> (x, k)
      picked = Gather <axis = 1> (values, rows)
      best = ArgMax <axis = 2, keepdims = 0> (x)
      above = Greater (picked, zero)
      chosen = Where (above, picked, zero)
      summed = CumSum (chosen, last)
      total = ReduceL2 <keepdims = 1> (summed, axes)
      y = Div (summed, total)
    }
    """
    return parse(
        text, k=np.int64([3]), rows=np.int64([3, 2, 1, 0]), zero=np.float32(0), last=np.int64(2), axes=np.int64([1])
    )


NETS = {"picture": _picture_net, "attention": _attention_net, "selection": _selection_net}


def test_the_list_of_targets_is_coremltools_own() -> None:
    assert tuple(t.name for t in dict.fromkeys(known_targets().values())) == TARGETS


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16], ids=str)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETS)
def test_the_nets_agree_with_onnxruntime_at_every_target(
    name: str, target: str, precision: Precision, tmp_path: Path
) -> None:
    model = hub(NETS[name]())
    feeds = random_feeds(model)
    path = EXPORTER.export(model, tmp_path / "x.mlpackage", ExportOptions(precision, target)).path
    want = reference(model, feeds)
    with open_package(path) as session:
        got = session.run(feeds)
        deepest = sum(1 for _ in session.trace(feeds))
    if precision is Precision.FP16:
        # One rounding is 2**-11 of a value; at worst every operation adds one.
        assert relative_error({"y": got["y"]}, {"y": want["y"]}) < deepest * 2.0**-11
    else:
        assert relative_error(got, {k: v.astype(got[k].dtype) for k, v in want.items()}) < 1e-5


@pytest.mark.parametrize("target", TARGETS)
def test_the_file_says_which_release_it_needs(target: str, tmp_path: Path) -> None:
    import coremltools as ct

    model = hub(_selection_net())
    path = EXPORTER.export(model, tmp_path / "x.mlpackage", ExportOptions(Precision.FP32, target)).path
    spec = ct.utils.load_spec(str(path))
    assert spec.specificationVersion == find_target(target).spec_version
    assert list(spec.mlProgram.functions["main"].block_specializations) == [spec.mlProgram.functions["main"].opset]


QUANTIZED = """
net (float[1, 4] x) => (float[1, 3] y) {
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  w = DequantizeLinear <axis = 1> (wq, ws, wz)
  y = MatMul (d, w)
}
"""


def _quantized() -> ir.Model:
    rng = np.random.default_rng(5)
    return hub(
        parse(
            QUANTIZED,
            s=np.float32(0.03),
            z=np.int8(3),
            wq=rng.integers(-127, 128, (4, 3)).astype(np.int8),
            ws=np.float32([0.01, 0.02, 0.03]),
            wz=np.zeros(3, np.int8),
        )
    )


@pytest.mark.parametrize("target", TARGETS)
def test_int8_from_ios16_on_and_refused_before(target: str, tmp_path: Path) -> None:
    """Activations are quantized by an operation of their own since iOS17, and before by rounding; weights need iOS16."""
    model = _quantized()
    options = ExportOptions(Precision.INT8, target)
    if find_target(target).version < 16:
        with pytest.raises(UnsupportedModel, match="integer weights need iOS16"):
            EXPORTER.export(model, tmp_path / "x.mlpackage", options)
        return
    feeds = random_feeds(model)
    with open_package(EXPORTER.export(model, tmp_path / "x.mlpackage", options).path) as session:
        assert relative_error(session.run(feeds), reference(model, feeds)) < 1e-5


# --- attention as one operation, since iOS18

ATTENTION = """
net (float[1, 2, 5, 4] q, float[1, 2, 4, 6] k, float[1, 2, 6, 3] v, float[1, 1, 5, 6] m) => (float[1, 2, 5, 3] y) {
  %s
}
"""
PRODUCT, SOFTMAX, END = "s = MatMul (q, k)", "p = Softmax (t)", "y = MatMul (p, v)"
FUSED = {
    "scaled after": [PRODUCT, "t = Mul (s, half)", SOFTMAX, END],
    "divided after": [PRODUCT, "t = Div (s, two)", SOFTMAX, END],
    "masked": [PRODUCT, "u = Mul (half, s)", "t = Add (m, u)", SOFTMAX, END],
    "scaled before": ["a = Mul (q, root)", "b = Mul (k, root)", "s = MatMul (a, b)", "t = Add (s, m)", SOFTMAX, END],
}
LEFT = {
    "another scale": [PRODUCT, "t = Mul (s, two)", SOFTMAX, END],
    "another axis": [PRODUCT, "t = Mul (s, half)", "p = Softmax <axis = 2> (t)", END],
    "read elsewhere": [
        PRODUCT,
        "t = Mul (s, half)",
        SOFTMAX,
        "o = MatMul (p, v)",
        "z = ReduceSum (p)",
        "y = Add (o, z)",
    ],
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
@pytest.mark.parametrize("name", [*FUSED, *LEFT])
def test_attention_is_one_operation_where_it_means_the_same(
    name: str, target: str, precision: str, tmp_path: Path
) -> None:
    numbers = {"half": np.float32(0.5), "two": np.float32(2), "root": np.float32(0.5**0.5)}
    model = hub(parse(ATTENTION % "\n".join((FUSED | LEFT)[name]), **numbers))
    feeds = random_feeds(model)
    path = EXPORTER.export(model, tmp_path / "x.mlpackage", ExportOptions(Precision(precision), target)).path
    with open_package(path) as session:
        kinds = [step.op_type for step in session.trace(feeds)]
        error = relative_error(session.run(feeds), reference(model, feeds))
    assert error < (1e-5 if precision == "fp32" else 2e-3)
    assert ("scaled_dot_product_attention" in kinds) == (target == "iOS18" and name in FUSED)
    assert ("softmax" in kinds) != ("scaled_dot_product_attention" in kinds)


def test_attention_that_float16_would_lose_in_part_is_not_fused(tmp_path: Path) -> None:
    model = hub(parse(ATTENTION % "\n".join(FUSED["masked"]), half=np.float32(0.5)))
    next(node for node in model.graph if node.op_type == "Add").metadata_props[KEEP_FLOAT32] = "the data says so"
    feeds = random_feeds(model)
    path = EXPORTER.export(model, tmp_path / "x.mlpackage", ExportOptions(Precision.FP16, "iOS18")).path
    with open_package(path) as session:
        assert "softmax" in [step.op_type for step in session.trace(feeds)]
        assert relative_error(session.run(feeds), reference(model, feeds)) < 2e-3
