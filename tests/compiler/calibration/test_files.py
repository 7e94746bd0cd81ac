"""Folders of pictures, tables, their labels, and the build that uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compiler.calibration.data import load_dataset
from compiler.errors import DataError, ExtraMissing
from compiler.io_layout import Layout
from compiler.request import BuildRequest
from profiles.schema import Format, Precision
from runtimes.artifact.manifest import read_manifest
from runtimes.preprocess import read_preprocessing
from runtimes.session import TensorSpec
from tests.compiler.small_net import save_net

IMAGE = (TensorSpec("image", "float32", (1, 3, 8, 8)),)
DECLARED = {"image": read_preprocessing({"kind": "image", "width": 8, "height": 8})}
TABLE = (TensorSpec("x", "float32", (1, 3)),)


def pictures(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 20) -> Path:
    rng = np.random.default_rng(1)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (10, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    data = load_dataset(str(pictures(tmp_path / "p")), IMAGE, DECLARED)
    assert data.feeds["image"].shape == (40, 3, 8, 8)
    assert data.labels is not None and data.labels.tolist() == [0] * 20 + [1] * 20
    assert data.classes == ("cat", "dog")
    assert data.feeds["image"].min() >= 0 and data.feeds["image"].max() <= 1


def test_a_list_of_labels(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", classes=("",), each=3)
    (folder / "labels.csv").write_text("file,label\n00.png,4\n01.png,0\n02.png,4\n")
    data = load_dataset(str(folder), IMAGE, DECLARED)
    assert data.labels is not None and data.labels.tolist() == [4, 0, 4] and data.classes is None
    (folder / "labels.csv").write_text("file,label\n00.png,frog\n01.png,ant\n")
    with pytest.raises(DataError, match=r"no label for 1 files, first 02\.png"):
        load_dataset(str(folder), IMAGE, DECLARED)
    (folder / "labels.csv").write_text("name\nx\n")
    with pytest.raises(DataError, match="no columns file and label"):
        load_dataset(str(folder), IMAGE, DECLARED)


def test_pictures_need_a_declaration_and_must_be_whole(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", each=1)
    with pytest.raises(DataError, match="nothing says how they become input 'image'") as caught:
        load_dataset(str(folder), IMAGE)
    assert "--preprocess" in caught.value.remedy
    (folder / "cat" / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"broken\.png"):
        load_dataset(str(folder), IMAGE, DECLARED)


@pytest.mark.parametrize("header", ("a,b,c", "x[0],x[1],x[2]"))
def test_a_table(tmp_path: Path, header: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header},label\n1,2,3,0\n4,5,6.5,1\n")
    data = load_dataset(str(path), TABLE)
    np.testing.assert_array_equal(data.feeds["x"], np.float32([[1, 2, 3], [4, 5, 6.5]]))
    assert data.labels is not None and data.labels.tolist() == [0, 1]


def test_words_as_labels_and_two_inputs(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("p,q[0],q[1],label\n1,2,3,yes\n4,5,6,no\n")
    data = load_dataset(str(path), (TensorSpec("p", "float32", (1, 1)), TensorSpec("q", "float32", (1, 2))))
    np.testing.assert_array_equal(data.feeds["q"], np.float32([[2, 3], [5, 6]]))
    assert data.classes == ("no", "yes") and data.labels is not None and data.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("a,b\n1,2\n", "takes 3 values per sample, the table has 2"),
        ("a,b,c\n1,2,x\n", "not numeric"),
        ("a,b,c\n1,2\n", "different length"),
        ("a,b,c\n", "holds no samples"),
    ),
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(str(path), TABLE)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(ExtraMissing, match="pyarrow"):
            load_dataset(str(path), TABLE)
        return
    parquet.write_table(pyarrow.table({"a": [1.0], "b": [2.0], "c": [3.0], "label": [1]}), path)
    assert load_dataset(str(path), TABLE).feeds["x"].tolist() == [[1.0, 2.0, 3.0]]


def test_a_build_from_pictures_tells_the_device_how(tmp_path: Path) -> None:
    from compiler.pipeline import build

    save_net(tmp_path / "net.onnx")
    folder = pictures(tmp_path / "p", classes=("a", "b", "c", "d"), each=10)
    declaration = tmp_path / "pre.toml"
    declaration.write_text('kind = "image"\nwidth = 8\nheight = 8\nmean = [0.5]\nstd = [0.25]\n')
    request = BuildRequest(
        str(tmp_path / "net.onnx"),
        tmp_path / "out",
        calibration=str(folder),
        preprocess=declaration,
        formats=(Format.TFLITE,),
        precisions=(Precision.INT8,),
        io_layout=Layout.NHWC,
    )
    assert build(request).ok
    manifest = read_manifest((tmp_path / "out" / "manifest.draft.json").read_bytes())
    assert manifest.outputs[0].labels == ("a", "b", "c", "d")
    declared = manifest.inputs[0].preprocessing
    assert declared is not None and (declared["layout"], declared["mean"]) == ("NHWC", [0.5])
    declaration.write_text('kind = "image"\nwidth = 9\nheight = 8\n')
    with pytest.raises(DataError, match="makes samples of 3x8x9"):
        build(
            BuildRequest(str(tmp_path / "net.onnx"), tmp_path / "no", calibration=str(folder), preprocess=declaration)
        )
    assert not (tmp_path / "no").exists()
