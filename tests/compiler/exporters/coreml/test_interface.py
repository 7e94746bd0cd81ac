"""Pictures, classes by name and sizes that vary: as an app sees them, as the reference session runs them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from compiler.errors import UnsupportedModel
from compiler.exporters.base import CoreMLInterface, ExportOptions, Pixels
from compiler.exporters.coreml import EXPORTER
from compiler.exporters.coreml.flexible import free_axes
from compiler.hub_session import open_hub
from profiles.schema import Precision, parse_sizes
from runtimes.coreml_reference.session import open_package
from runtimes.errors import InputMismatch
from runtimes.session import Array
from tests.compiler.exporters.coreml.support import hub, parse, relative_error

CLASSES = ("cat", "dog", "a very long name, with a comma", "bird", "fish")


def _picture_net(layout: str = "NCHW", channels: int = 3, batch: int = 1) -> ir.Model:
    """Convolution, pooling, head and softmax; turned first where channels come last."""
    rng = np.random.default_rng(2)
    w1 = (rng.standard_normal((6, channels, 3, 3)) / 5).astype(np.float32)
    w2 = rng.standard_normal((6, 5)).astype(np.float32)
    size = f"{batch}, {channels}, 12, 10" if layout == "NCHW" else f"{batch}, 12, 10, {channels}"
    first = "t = Transpose <perm = [0, 3, 1, 2]> (x)" if layout == "NHWC" else "t = Identity (x)"
    text = f"""
    net (float[{size}] x) => (float[{batch}, 5] y) {{
      {first}
      a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (t, w1)
      r = Relu (a)
      p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
      g = GlobalAveragePool (p)
      f = Reshape (g, flat)
      l = MatMul (f, w2)
      y = Softmax (l)
    }}
    """
    return hub(parse(text, w1=w1, w2=w2, flat=np.int64([batch, 6])))


def _export(model: ir.Model, folder: Path, precision: str = "fp32", target: str = "iOS17", **interface: Any) -> Path:
    options = ExportOptions(Precision(precision), target, interface=CoreMLInterface(**interface))
    return EXPORTER.export(model, folder / f"{precision}.mlpackage", options).path


def _spec(path: Path) -> Any:
    import coremltools as ct

    return ct.utils.load_spec(str(path))


def _truth(model: ir.Model, x: Array) -> Array:
    with open_hub(model) as session:
        return session.run({"x": x})["y"]


# --- pictures

IMAGENET = Pixels("RGB", "NCHW", (1 / 255 / 0.229, 1 / 255 / 0.224, 1 / 255 / 0.225), (-2.1179, -2.0357, -1.8044))
KINDS = {
    "imagenet": IMAGENET,
    "bgr": Pixels("BGR", "NCHW", (1 / 127.5,) * 3, (-1.0,) * 3),
    "channels-last": Pixels("RGB", "NHWC", (1 / 255,) * 3, (0.0,) * 3),
    "raw": Pixels("RGB", "NCHW", (1.0,) * 3, (0.0,) * 3),
    "gray": Pixels("GRAY", "NCHW", (1 / 255,), (-0.5,)),
}


def _picture(pixels: Pixels, seed: int = 0) -> Array:
    """The model's numbers for random pixels, in the model's layout."""
    channels = len(pixels.scale)
    codes = np.random.default_rng(seed).integers(0, 256, (1, 12, 10, channels)).astype(np.float32)
    x = (codes * np.float32(pixels.scale) + np.float32(pixels.bias)).astype(np.float32)
    return x.transpose(0, 3, 1, 2) if pixels.layout == "NCHW" else x


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_becomes_the_models_numbers(kind: str, precision: str, tmp_path: Path) -> None:
    pixels = KINDS[kind]
    model = _picture_net(pixels.layout, len(pixels.scale))
    path = _export(model, tmp_path, precision, pictures={"x": pixels})
    x = _picture(pixels)
    with open_package(path) as session:
        assert (session.inputs[0].dtype, session.inputs[0].shape) == ("float32", x.shape)
        got = session.run({"x": x})["y"]
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert relative_error({"y": got}, {"y": _truth(model, x)}) < tolerance
    image = _spec(path).description.input[0].type.imageType
    assert (image.height, image.width) == (12, 10)
    assert image.colorSpace == {"GRAY": 10, "RGB": 20, "BGR": 30}[pixels.colour]


def test_numbers_that_no_pixels_give_are_refused(tmp_path: Path) -> None:
    path = _export(_picture_net(), tmp_path, pictures={"x": IMAGENET})
    x = _picture(IMAGENET)
    x[0, 0, 0, 0] = 9.0
    with open_package(path) as session, pytest.raises(InputMismatch, match="would need pixels from"):
        session.run({"x": x})


def test_a_package_without_our_metadata_takes_pixels(tmp_path: Path) -> None:
    path = _export(_picture_net(), tmp_path, pictures={"x": IMAGENET})
    model = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = _spec(path)
    spec.description.metadata.userDefined.clear()
    model.write_bytes(spec.SerializeToString())
    codes = np.random.default_rng(0).integers(0, 256, (1, 12, 10, 3)).astype(np.uint8)
    x = codes.astype(np.float32).transpose(0, 3, 1, 2)
    x = x * np.float32(IMAGENET.scale).reshape(1, -1, 1, 1) + np.float32(IMAGENET.bias).reshape(1, -1, 1, 1)
    with open_package(path) as session:
        assert (session.inputs[0].dtype, session.inputs[0].shape) == ("uint8", (1, 12, 10, 3))
        assert relative_error(session.run({"x": codes}), {"y": _truth(_picture_net(), x)}) < 1e-5
        with pytest.raises(InputMismatch):
            session.run({"x": x})


@pytest.mark.parametrize(
    ("model", "pixels", "text"),
    [
        (_picture_net(batch=2), IMAGENET, "not that of one picture"),
        (_picture_net(), KINDS["gray"], "has 3 channels, a GRAY picture has 1"),
    ],
)
def test_what_is_no_picture_is_refused(model: ir.Model, pixels: Pixels, text: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        _export(model, tmp_path, pictures={"x": pixels})


# --- classes


def test_scores_come_by_class(tmp_path: Path) -> None:
    model = _picture_net()
    path = _export(model, tmp_path, classes=CLASSES)
    x = np.random.default_rng(1).standard_normal((1, 3, 12, 10)).astype(np.float32)
    want = _truth(model, x)
    with open_package(path) as session:
        got = session.run({"x": x})
        assert {s.name: s.dtype for s in session.outputs} == {"classLabel": "str", "y": "float32"}
    assert relative_error({"y": got["y"]}, {"y": want}) < 1e-5
    assert got["classLabel"].tolist() == [CLASSES[int(want.argmax())]]
    description = _spec(path).description
    assert (description.predictedFeatureName, description.predictedProbabilitiesName) == (
        "classLabel",
        "classLabel_probs",
    )
    kinds = {o.name: o.type.WhichOneof("Type") for o in description.output}
    assert kinds == {"classLabel": "stringType", "classLabel_probs": "dictionaryType"}


@pytest.mark.parametrize(
    "more", [{"classes": CLASSES}, {"flexible": {"x": parse_sizes("1x3x12..40x10..30")}}], ids=["classes", "sizes"]
)
def test_two_builds_are_equal(more: dict[str, Any], tmp_path: Path) -> None:
    made = []
    for name in "ab":
        (tmp_path / name).mkdir()
        path = _export(_picture_net(), tmp_path / name, pictures={"x": IMAGENET}, **more)
        made.append({p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()})
    assert made[0] == made[1]


def test_a_value_of_that_name_keeps_it(tmp_path: Path) -> None:
    model = hub(
        parse(
            "net (float[1, 2] classLabel) => (float[1, 2] classLabel_probs) { classLabel_probs = Softmax (classLabel) }"
        )
    )
    path = _export(model, tmp_path, classes=("a", "b"))
    x = np.float32([[1, 3]])
    with open_package(path) as session:
        got = session.run({"classLabel": x})
    assert got["classLabel_probs"].shape == (1, 2)
    assert "b" in [str(v[0]) for v in got.values() if v.dtype.kind == "U"]


@pytest.mark.parametrize(
    ("classes", "text"),
    [(("a", "b"), "no output has one score for each of 2 classes"), (("a", "b", "c", "d", "a"), "two classes are called 'a'")],
)  # fmt: skip
def test_wrong_classes_are_refused(classes: tuple[str, ...], text: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        _export(_picture_net(), tmp_path, classes=classes)


# --- sizes

SIZES = {
    "range": (
        "1..4x3x12..40x10..30",
        [(1, 3, 12, 10), (4, 3, 40, 30), (2, 3, 17, 11)],
        [(5, 3, 12, 10), (1, 3, 41, 10)],
    ),
    "list": ("1x3x12x10,1x3x24x20", [(1, 3, 12, 10), (1, 3, 24, 20)], [(1, 3, 12, 20), (1, 3, 18, 10)]),
    "batch": ("1..8x3x12x10", [(1, 3, 12, 10), (8, 3, 12, 10)], [(9, 3, 12, 10), (1, 3, 12, 11)]),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["iOS15", "iOS17", "iOS26"])
@pytest.mark.parametrize("kind", SIZES)
def test_every_size_is_computed_and_others_are_refused(kind: str, target: str, precision: str, tmp_path: Path) -> None:
    text, taken, refused = SIZES[kind]
    flexible = {"x": parse_sizes(text)}
    model = _picture_net()
    path = _export(model, tmp_path, precision, target, flexible=flexible)
    free = free_axes(model, flexible)
    rng = np.random.default_rng(0)
    with open_package(path) as session:
        for shape in taken:
            x = rng.standard_normal(shape).astype(np.float32)
            assert relative_error(session.run({"x": x}), {"y": _truth(free, x)}) < (
                1e-5 if precision == "fp32" else 2e-2
            )
        for shape in refused:
            with pytest.raises(InputMismatch, match="the model takes"):
                session.run({"x": np.zeros(shape, np.float32)})
    array = _spec(path).description.input[0].type.multiArrayType
    assert list(array.shape) == [1, 3, 12, 10]
    assert array.WhichOneof("ShapeFlexibility") == ("enumeratedShapes" if kind == "list" else "shapeRange")


@pytest.mark.parametrize("text", ["1x3x12..40x10..30", "1x3x12x10,1x3x24x20"])
def test_pictures_of_several_sizes(text: str, tmp_path: Path) -> None:
    flexible = {"x": parse_sizes(text)}
    path = _export(_picture_net(), tmp_path, flexible=flexible, pictures={"x": IMAGENET}, classes=CLASSES)
    codes = np.random.default_rng(0).integers(0, 256, (1, 3, 24, 20)).astype(np.float32)
    x = codes * np.float32(IMAGENET.scale).reshape(1, -1, 1, 1) + np.float32(IMAGENET.bias).reshape(1, -1, 1, 1)
    with open_package(path) as session:
        assert (
            relative_error({"y": session.run({"x": x})["y"]}, {"y": _truth(free_axes(_picture_net(), flexible), x)})
            < 1e-5
        )
        with pytest.raises(InputMismatch, match="the model takes"):
            session.run({"x": np.zeros((1, 3, 60, 20), np.float32)})


UPSAMPLING = """
net (float[1, 2, 4, 4] x) => (float[1, 3, 16, 16] y) {
  u = Resize <mode = "linear"> (x, , twice)
  t = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (u, w)
  n = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"> (u, , twice)
  a, b = Split <axis = 1, num_outputs = 2> (n)
  y = Concat <axis = 1> (t, a)
}
"""


def test_upsampling_by_factors_is_flexible(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2, 2, 3, 3)).astype(np.float32)
    model = hub(parse(UPSAMPLING, twice=np.float32([1, 1, 2, 2]), w=w))
    flexible = {"x": parse_sizes("1x2x4..9x4..9")}
    path = _export(model, tmp_path, flexible=flexible)
    free = free_axes(model, flexible)
    with open_package(path) as session:
        for shape in ((1, 2, 4, 4), (1, 2, 9, 5)):
            x = rng.standard_normal(shape).astype(np.float32)
            assert relative_error(session.run({"x": x}), {"y": _truth(free, x)}) < 1e-5


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("z", "1x3x12x10", "there is no input 'z'"),
        ("x", "1x3x12", "has 4 axes, its sizes have 3"),
        ("x", "1x3x20..40x10", "leave out 1x3x12x10"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_refused(name: str, text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        _export(_picture_net(), tmp_path, flexible={name: parse_sizes(text)})


NEEDS_A_SIZE = {
    "1, 32": ("y = Reshape (x, fixed)", "fixed while its input is flexible"),
    "1, 2, 4, 4": ('y = MaxPool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (x)', "SAME_UPPER pads by the size"),
    "1, 2, 8, 8": ('y = Resize <mode = "linear"> (x, , , sizes)', "resizes to a size"),
    "1, 2, 2, 2": (
        "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)",
        "ceil_mode pads by the size",
    ),
    "1, 2, 2, 3": ("y = Slice (x, starts, ends)", "flexible"),
}


@pytest.mark.parametrize("size", NEEDS_A_SIZE)
def test_what_needs_a_size_is_refused_by_name(size: str, tmp_path: Path) -> None:
    line, reason = NEEDS_A_SIZE[size]
    numbers = {"fixed": [1, 32], "sizes": [1, 2, 8, 8], "starts": [0, 0, 1, -3], "ends": [1, 2, -1, 4]}
    text = f"net (float[1, 2, 4, 4] x) => (float[{size}] y) {{ {line} }}"
    model = hub(parse(text, **{name: np.int64(values) for name, values in numbers.items()}))
    with pytest.raises(UnsupportedModel, match=reason):
        _export(model, tmp_path, flexible={"x": parse_sizes("1x2x4..8x4..8")})
