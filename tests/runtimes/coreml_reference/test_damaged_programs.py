"""Packages with pictures, classes, sizes and compressed weights, damaged where they still parse: a typed error, or an answer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.exporters.base import CoreMLInterface, ExportOptions, Pixels
from compiler.exporters.coreml import EXPORTER
from compiler.quantization.plan import Compression, QuantizeOptions
from compiler.quantization.schemes import quantize_as
from profiles.errors import EdgewrightError
from profiles.schema import Precision, parse_sizes
from runtimes.coreml_reference.proto import model_class
from runtimes.coreml_reference.session import open_package
from runtimes.errors import ModelLoadError
from tests.compiler.exporters.coreml.support import hub, parse
from tests.runtimes.conftest import tiny_spec, write_package
from tests.runtimes.coreml_reference.damage import MODEL, damage

WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
KINDS = {
    "palettized": (Precision.SPARSE_PALETTIZED4, Compression(palette_group=8, int8_table=True)),
    "sparse": (Precision.SPARSE_INT8, Compression()),
}


@pytest.fixture(scope="module", params=KINDS)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of several sizes in, a class out, weights compressed twice."""
    precision, compression = KINDS[request.param]
    rng = np.random.default_rng(0)
    text = """
    net (float[1, 3, 8, 8] x) => (float[1, 4] y) {
      a = Conv <pads = [1, 1, 1, 1]> (x, w)
      g = GlobalAveragePool (a)
      f = Flatten (g)
      l = MatMul (f, v)
      y = Softmax (l)
    }
    """
    w, v = rng.standard_normal((16, 3, 3, 3)).astype(np.float32), rng.standard_normal((16, 4)).astype(np.float32)
    made = quantize_as(hub(parse(text, w=w, v=v)), None, precision, QuantizeOptions(compression=compression)).model
    interface = CoreMLInterface(
        {"x": Pixels("RGB", "NCHW", (0.1, 0.2, 0.3), (-1.0, 0.0, -0.5))}, ("a", "b", "c", "d"),
        {"x": parse_sizes("1x3x8..12x8..12")},
    )  # fmt: skip
    path = tmp_path_factory.mktemp(request.param) / "x.mlpackage"
    return EXPORTER.export(made, path, ExportOptions(precision, "iOS18", interface=interface)).path


def _try(path: Path) -> bool:
    """Whether the package is refused, in a typed error with a remedy. Anything else that escapes fails the test."""
    try:
        with open_package(path) as session:
            session.run({s.name: np.zeros([d or 8 for d in s.shape], s.dtype) for s in session.inputs})
    except EdgewrightError as error:
        assert error.remedy and error.message
        return True
    return False


def test_it_is_whole_before(package: Path) -> None:
    assert not _try(package)


def test_any_field_may_change(package: Path) -> None:
    original = (package / MODEL).read_bytes()
    rng, refused = random.Random(1), 0
    names = [
        "",
        "x",
        "y",
        "classify",
        "conv",
        "constexpr_lut_to_sparse",
        "@model_path/weights/weight.bin",
        "{",
        '{"x": 1}',
    ]
    try:
        for _ in range(100):
            spec = model_class().FromString(original)
            damage(spec, names, rng)
            (package / MODEL).write_bytes(spec.SerializeToString())
            refused += _try(package)
    finally:
        (package / MODEL).write_bytes(original)
    assert refused > 20


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_weights_may_end_early_or_lie(package: Path, data: st.DataObject) -> None:
    original = (package / WEIGHTS).read_bytes()
    damaged = bytearray(original)
    at = data.draw(st.integers(0, len(original) - 1))
    if data.draw(st.booleans()):
        del damaged[at:]
    else:
        damaged[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        (package / WEIGHTS).write_bytes(damaged)
        _try(package)
    finally:
        (package / WEIGHTS).write_bytes(original)


def _operation(spec: Any, index: int) -> Any:
    return spec.mlProgram.functions["main"].block_specializations["CoreML5"].operations[index]


def _own_output(spec: Any) -> None:
    _operation(spec, 1).inputs["x"].arguments[0].name = "sum"


def _later_output(spec: Any) -> None:
    _operation(spec, 1).inputs["x"].arguments[0].name = "mil_y"


def _nested(spec: Any) -> None:
    block = _operation(spec, 1).blocks.add()
    for _ in range(40):
        operation = block.operations.add()
        operation.type = "cond"
        block = operation.blocks.add()


def _block_reads_nothing(spec: Any) -> None:
    operation = _operation(spec, 1).blocks.add().operations.add()
    operation.type = "relu"
    operation.inputs["x"].arguments.add().name = "nowhere"


def _missing_blocks(spec: Any) -> None:
    _operation(spec, 1).type = "while_loop"


DAMAGES = {
    "an operation that reads itself": (_own_output, r"add 'sum' reads \['sum'\], which nothing defines"),
    "an operation that reads a later one": (_later_output, r"add 'sum' reads \['mil_y'\], which nothing defines"),
    "blocks in blocks": (_nested, "blocks nest deeper than"),
    "a block that reads nothing": (_block_reads_nothing, r"relu 'relu' reads \['nowhere'\]"),
    "a loop without blocks": (_missing_blocks, "while_loop 'sum': it has 0 blocks"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_error_names_the_place(name: str, tmp_path: Path) -> None:
    damage, text = DAMAGES[name]
    spec, weights = tiny_spec()
    damage(spec)
    path = write_package(tmp_path / "bad.mlpackage", spec, weights)
    with pytest.raises(EdgewrightError, match=text), open_package(path) as session:
        session.run({"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "malformed"),
        ('{"mil_x": {"colour": "RGB"}}', "malformed"),
        ("[" * 5000, "not JSON"),
    ],
)
def test_metadata_of_pictures_is_checked(text: str, reason: str, tmp_path: Path) -> None:
    spec, weights = tiny_spec()
    spec.description.metadata.userDefined["edgewright.images"] = text
    with pytest.raises(ModelLoadError, match=reason):
        open_package(write_package(tmp_path / "bad.mlpackage", spec, weights))
