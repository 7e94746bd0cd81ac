"""Between quantizations nothing rounds: the integers of a package are those of exact sums, ties to even."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtimes.session import Array
from tests.compiler.exporters.coreml.support import hub, parse
from tests.compiler.exporters.coreml.test_reference_evaluator import evaluated

SCALES = (0.0374216, 0.0019371, 0.7243)  # none is a power of two, so that every product rounds in float32


def _mean(codes: Array, scale: float, folder: Path) -> Array:
    """The codes of the mean over height and width, at the scale that the input has."""
    source = parse(
        "m (float[1,64,4,4] x) => (float[1,64,1,1] y)"
        "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) p = GlobalAveragePool(d)"
        "  r = QuantizeLinear(p, s, z) y = DequantizeLinear(r, s, z) }",
        s=np.float32(scale),
        z=np.int8(0),
    )
    feeds = {"x": (codes * np.float32(scale)).astype(np.float32)}
    return np.rint(evaluated(hub(source), feeds, folder, "int8")["y"] / np.float32(scale))


@pytest.mark.parametrize("scale", SCALES)
def test_a_mean_that_ends_on_a_half_goes_to_the_even_code(tmp_path: Path, scale: float) -> None:
    codes = np.random.default_rng(3).integers(-128, 128, (1, 64, 4, 4))
    codes[0, :, 0, 0] += (8 - codes[0].sum(axis=(1, 2))) % 16  # every mean is a half
    codes = np.where(codes > 127, codes - 16, codes)
    sums = codes.sum(axis=(2, 3), keepdims=True)
    assert (sums % 16 == 8).all()
    np.testing.assert_array_equal(_mean(codes, scale, tmp_path), np.rint(sums / 16))


@pytest.mark.parametrize("scale", SCALES)
def test_a_product_that_ends_on_a_half_goes_to_the_even_code(tmp_path: Path, scale: float) -> None:
    """Weights of scale 1/128 and equal scales around them: a sum of 64 + 128 k is a tie."""
    rng = np.random.default_rng(4)
    weights, codes = rng.integers(-127, 128, (32, 48)), rng.integers(-20, 21, (200, 48))
    sums = codes @ weights.T
    source = parse(
        "m (float[200,48] x) => (float[200,32] y)"
        "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, t, z)"
        "  p = Gemm <transB = 1> (d, v) r = QuantizeLinear(p, s, z) y = DequantizeLinear(r, s, z) }",
        s=np.float32(scale),
        t=np.float32(1 / 128),
        z=np.int8(0),
        w=weights.astype(np.int8),
    )
    got = evaluated(hub(source), {"x": (codes * np.float32(scale)).astype(np.float32)}, tmp_path, "int8")["y"]
    assert (sums % 128 == 64).sum() > 20
    np.testing.assert_array_equal(np.rint(got / np.float32(scale)), np.clip(np.rint(sums / 128), -128, 127))


def test_answers_are_of_the_declared_type(tmp_path: Path) -> None:
    codes = np.zeros((1, 64, 4, 4), np.int64)
    assert _mean(codes, 0.1, tmp_path).dtype == np.float32
