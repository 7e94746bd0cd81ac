"""Packages are read exactly, and damaged ones are refused by name, never crash."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiles.errors import EdgewrightError
from runtimes.coreml_reference.session import open_package
from runtimes.coreml_reference.types import DTYPES, decode
from runtimes.errors import InferenceFailed, ModelLoadError
from runtimes.registry import open_session
from runtimes.session import Evidence
from tests.runtimes.conftest import tensor, tiny_spec, write_package

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")


def test_a_package_runs_under_its_original_names(tiny_package: Path) -> None:
    x = np.array([[0, -5, 2], [3, 1, -1]], np.float32)
    with open_package(tiny_package) as session:
        assert [s.name for s in session.inputs] == ["x"]
        assert session.runtime.evidence is Evidence.REFERENCE_VERIFIED
        assert np.array_equal(session.run({"x": x})["y"], np.maximum(x + np.array([-1, 0, 1]), 0))
        assert [(s.name, s.op_type) for s in session.trace({"x": x})] == [("sum", "add"), ("mil_y", "relu")]


def test_reading_imports_neither_coremltools_nor_torch(tiny_package: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from runtimes.coreml_reference.session import open_package;"
        f"open_package(Path({str(tiny_package)!r})); print([m for m in ('coremltools', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _op(spec: Any, index: int) -> Any:
    return spec.mlProgram.functions["main"].block_specializations["CoreML5"].operations[index]


def _unknown(spec: Any) -> None:
    _op(spec, 1).type, _op(spec, 2).type = "frobnicate", "defrobnicate"


def _huge(spec: Any) -> None:
    del _op(spec, 1).outputs[0].type.tensorType.dimensions[:]
    tensor(_op(spec, 1).outputs[0].type, [1 << 40, 1 << 20])


def _undefined(spec: Any) -> None:
    _op(spec, 1).inputs["y"].arguments[0].name = "nowhere"


def _escape(spec: Any) -> None:
    _op(spec, 0).attributes["val"].blobFileValue.fileName = "@model_path/../../../secret"


def _offset(spec: Any) -> None:
    _op(spec, 0).attributes["val"].blobFileValue.offset = 1 << 60


def _metadata(spec: Any) -> None:
    spec.description.metadata.userDefined["edgewright.inputs"] = "[1"


def _image(spec: Any) -> None:
    spec.description.input[0].type.imageType.width = 4


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_unknown, "defrobnicate, frobnicate"),
        (_huge, "GiB"),
        (_undefined, "nowhere"),
        (_escape, "leaves"),
        (_offset, "leaves the file"),
        (_metadata, "not JSON"),
        (_image, "colour space 0"),
    ],
)
def test_a_bad_program_is_refused(tmp_path: Path, damage: Callable[[Any], None], text: str) -> None:
    spec, weights = tiny_spec()
    damage(spec)
    with pytest.raises(ModelLoadError, match=text):
        open_package(write_package(tmp_path / "bad.mlpackage", spec, weights))


@pytest.mark.parametrize(
    ("position", "value", "text"),
    [
        (4, struct.pack("<I", 1), "version 1"),
        (64, b"\0\0\0\0", "sentinel"),
        (68, struct.pack("<I", 1), "holds FLOAT16"),
        (72, struct.pack("<Q", 1 << 62), "leave the file"),
        (72, struct.pack("<Q", 8), "needs another number"),
        (80, struct.pack("<Q", (1 << 64) - 4), "leave the file"),
    ],
)
def test_a_damaged_weight_file_is_refused(tiny_package: Path, position: int, value: bytes, text: str) -> None:
    path = tiny_package / WEIGHTS
    data = bytearray(path.read_bytes())
    data[position : position + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(ModelLoadError, match=text):
        open_package(tiny_package)


@pytest.mark.parametrize("name", ["Manifest.json", str(MODEL), str(WEIGHTS)])
def test_missing_and_empty_files_are_refused(tiny_package: Path, name: str) -> None:
    (tiny_package / name).write_bytes(b"")
    with pytest.raises(ModelLoadError):
        open_package(tiny_package)
    (tiny_package / name).unlink()
    with pytest.raises(ModelLoadError):
        open_package(tiny_package)


def test_a_folder_with_the_model_beside_its_weights(tiny_package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny.mlmodelc"
    shutil.copytree(tiny_package / "Data" / "com.apple.CoreML", folder)
    x = np.array([[0, -5, 2], [3, 1, -1]], np.float32)
    with open_session(folder) as ours, open_session(tiny_package) as package:
        assert np.array_equal(ours.run({"x": x})["y"], package.run({"x": x})["y"])
        assert ours.runtime.name == "coreml-reference"


def test_a_compiled_model_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "x.mlmodelc").mkdir()
    with pytest.raises(ModelLoadError, match=r"Manifest\.json"):
        open_package(tmp_path / "x.mlmodelc")
    (tmp_path / "x.mlmodelc" / "model.mil").write_text("program(1.0)")
    with pytest.raises(ModelLoadError, match="compiled by Apple's coremlc") as caught:
        open_package(tmp_path / "x.mlmodelc")
    assert ".mlpackage" in caught.value.remedy


def test_random_damage_never_escapes_as_another_error(tiny_package: Path) -> None:
    """Any byte may flip and any file may end early: a typed error, or a model that still runs."""
    rng = random.Random(0)
    originals = {name: (tiny_package / name).read_bytes() for name in (MODEL, WEIGHTS)}
    refused = 0
    for _ in range(300):
        name = rng.choice(list(originals))
        data = bytearray(originals[name])
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tiny_package / name).write_bytes(data)
        try:
            session = open_package(tiny_package)
            session.run({s.name: np.zeros([d or 1 for d in s.shape], s.dtype) for s in session.inputs})
        except EdgewrightError as error:
            refused += 1
            assert error.remedy
        (tiny_package / name).write_bytes(originals[name])
    assert refused > 50


def test_a_declaration_that_differs_from_the_result_is_reported(tmp_path: Path) -> None:
    spec, weights = tiny_spec()
    _op(spec, 1).outputs[0].type.tensorType.dimensions[0].constant.size = 5
    with (
        open_package(write_package(tmp_path / "bad.mlpackage", spec, weights)) as session,
        pytest.raises(InferenceFailed, match=r"add 'sum': yields shape \[2, 3\], the program declares \[5, 3\]"),
    ):
        session.run({"x": np.zeros((2, 3), np.float32)})


def test_narrow_integers_unpack_across_bytes() -> None:
    # 0b_10_01 nibbles, low first; three 6-bit values 1, 2, 63 cross byte boundaries.
    assert decode(bytes([0x8F, 0x07]), DTYPES["INT4"], (3,)).tolist() == [-1, -8, 7]
    packed = (1 | 2 << 6 | 63 << 12).to_bytes(3, "little")
    assert decode(packed, DTYPES["UINT6"], (3,)).tolist() == [1, 2, 63]
    with pytest.raises(ValueError, match="needs 3"):
        decode(packed[:2], DTYPES["UINT6"], (3,))
