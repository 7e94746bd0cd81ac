"""Operators that are decomposed, under flexible sizes: right at every size, or refused by name, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler.exporters.base import CoreMLInterface, ExportOptions
from compiler.exporters.coreml import EXPORTER
from compiler.exporters.coreml.flexible import at_ends, free_axes
from profiles.schema import Precision, parse_sizes
from runtimes.registry import open_session
from tests.compiler.exporters.coreml.support import hub, parse, reference, relative_error

RANGE, LIST = "1..5x3x4..9", "1x3x4,2x3x7,5x3x9"
SHAPES = {RANGE: [(1, 3, 4), (5, 3, 9), (2, 3, 6)], LIST: [(1, 3, 4), (2, 3, 7), (5, 3, 9)]}
# Core ML has none of these; nothing in what they are made of depends on the flexible sizes.
RIGHT = {
    "mish": "y = Mish(x)",
    "celu": "y = Celu<alpha = 0.7>(x)",
    "shrink": "y = Shrink<bias = 0.1, lambd = 0.3>(x)",
    "round": "y = Round(x)",
    "fmod": "y = Mod<fmod = 1>(x, scale)",
    "instance normalisation": "y = InstanceNormalization(x, scale1, bias1)",
    "hardmax": "y = Hardmax<axis = 1>(x)",
    "lp norm": "y = LpNormalization<axis = 1, p = 1>(x)",
    "where": "p = Less(x, zero)  y = Where(p, x, zero)",
}


def _model(line: str) -> ir.Model:
    rng = np.random.default_rng(3)
    constants = {
        "scale": rng.uniform(0.5, 2, (3, 1)), "scale1": rng.uniform(0.5, 2, 3), "bias1": rng.standard_normal(3),
        "zero": np.zeros(()),
    }  # fmt: skip
    text = f"g (float[1,3,4] x) => (float[1,3,4] y) {{ {line} }}"
    used = {name: a.astype(np.float32) for name, a in constants.items() if name in line}
    return hub(parse(text, **used))


@pytest.mark.parametrize("sizes", [RANGE, LIST], ids=["range", "list"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_decomposition_that_no_size_is_in(name: str, sizes: str, tmp_path: Path) -> None:
    model = _model(RIGHT[name])
    flexible = {"x": parse_sizes(sizes)}
    options = ExportOptions(Precision.FP32, "iOS17", interface=CoreMLInterface(flexible=flexible))
    path = EXPORTER.export(model, tmp_path / "net.mlpackage", options).path
    free, rng = free_axes(model, flexible), np.random.default_rng(0)
    with open_session(path, runtime="coreml-reference") as session:
        for shape in SHAPES[sizes]:
            feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
            assert relative_error(session.run(feeds), reference(free, feeds)) <= 1e-5


# What these are made of holds the size: a table of positions, a matrix of so many columns.
WRONG = {
    "dft": ("s = DFT<axis = 2>(r)  y = ReduceSum<keepdims = 0>(s, last)", "DFT"),
    "affine": ("y = Expand(x, wide)", "Expand"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_decomposition_that_holds_a_size_is_refused(name: str) -> None:
    line, operator = WRONG[name]
    text = f"g (float[1,3,4,1] r, float[1,3,4] x) => (float[1,3,4] y) {{ {line} }}"
    model = hub(parse(text, last=np.int64([3]), wide=np.int64([1, 3, 4])))
    flexible = {"r": parse_sizes("1x3x4..9x1"), "x": parse_sizes("1x3x4..9")}
    options = ExportOptions(Precision.FP32, "iOS17", interface=CoreMLInterface(flexible=flexible))
    refusals = EXPORTER.check(model, options)
    assert [(r.op_type, bool(r.node and r.reason and r.remedy)) for r in refusals] == [(operator, True)]


def test_the_ends_are_the_least_and_the_largest() -> None:
    model = _model("y = Sin(x)")
    for sizes, last in ((RANGE, [(1, 3, 4), (5, 3, 9)]), (LIST, SHAPES[LIST])):
        ends = at_ends(model, {"x": parse_sizes(sizes)})
        assert [end.graph.outputs[0].shape and end.graph.outputs[0].shape.dims for end in ends] == last
