"""Pictures and recordings: against torch-free formulas, against Pillow used by hand, and against what people send by mistake."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtimes.errors import InputMismatch
from runtimes.preprocess import load_preprocessing, prepare, read_preprocessing, shape_of
from runtimes.session import Array

IMAGE = {"kind": "image", "width": 4, "height": 4}


def png(pixels: Array) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def wav(samples: Array, rate: int = 16000, width: int = 2, channels: int = 1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return out.getvalue()


def picture(height: int = 4, width: int = 4) -> Array:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_the_formula_and_the_layouts() -> None:
    pixels = picture()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    declaration = read_preprocessing(IMAGE | {"mean": mean, "std": std})
    want = ((pixels / 255 - mean) / std).astype(np.float32)
    np.testing.assert_allclose(prepare(declaration, png(pixels))[0], want.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    last = read_preprocessing(IMAGE | {"layout": "NHWC", "colour": "BGR", "scale": 1.0})
    np.testing.assert_array_equal(prepare(last, png(pixels))[0], pixels[:, :, ::-1].astype(np.float32))
    assert [shape_of(d) for d in (declaration, last)] == [(1, 3, 4, 4), (1, 4, 4, 3)]


def test_grey_is_the_luma_of_itu_r_601() -> None:
    pixels = picture()
    got = prepare(read_preprocessing(IMAGE | {"colour": "GRAY", "scale": 1.0}), png(pixels))[0, 0]
    assert np.abs(got - pixels @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_crop_takes_the_middle_and_pad_keeps_the_whole() -> None:
    pixels = picture(4, 8)
    crop = prepare(read_preprocessing(IMAGE | {"scale": 1.0}), png(pixels))[0]
    np.testing.assert_array_equal(crop, pixels[:, 2:6].transpose(2, 0, 1).astype(np.float32))
    wide = read_preprocessing(IMAGE | {"width": 8, "height": 8, "resize": "pad", "scale": 1.0, "mean": [9.0]})
    padded = prepare(wide, png(pixels))[0]
    np.testing.assert_array_equal(padded[:, 2:6], pixels.transpose(2, 0, 1).astype(np.float32) - 9)
    assert not padded[:, :2].any() and not padded[:, 6:].any()


def test_crop_after_a_larger_resize_is_pillows_resize_and_crop() -> None:
    pixels = picture(30, 50)
    declaration = read_preprocessing(
        {"kind": "image", "width": 14, "height": 14, "shorter": 16, "scale": 1.0, "filter": "bicubic"}
    )
    scaled = Image.fromarray(pixels).resize((27, 16), Image.Resampling.BICUBIC)
    want = np.asarray(scaled.crop((6, 1, 20, 15)), np.float32).transpose(2, 0, 1)
    np.testing.assert_array_equal(prepare(declaration, png(pixels))[0], want)


@pytest.mark.parametrize("width", (1, 2, 3, 4))
def test_samples_of_every_width(width: int) -> None:
    values = np.array([-0.5, 0.0, 0.25, 0.75])
    if width == 1:
        raw = (values * 128 + 128).astype(np.uint8)
    elif width == 3:
        whole = (values * (1 << 23)).astype("<i4")
        raw = whole.view(np.uint8).reshape(-1, 4)[:, :3].copy()
    else:
        raw = (values * (1 << (8 * width - 1))).astype(f"<i{width}")
    declaration = read_preprocessing({"kind": "audio", "sample_rate": 16000, "samples": 6})
    got = prepare(declaration, wav(raw, width=width))
    np.testing.assert_array_equal(got, [[-0.5, 0.0, 0.25, 0.75, 0.0, 0.0]])
    assert shape_of(declaration) == got.shape


def test_channels_are_averaged_and_long_recordings_cut() -> None:
    raw = np.array([[1 << 14, 0], [0, 1 << 14], [-(1 << 14), -(1 << 14)]], "<i2")
    declaration = read_preprocessing({"kind": "audio", "sample_rate": 16000, "samples": 2, "scale": 2.0})
    np.testing.assert_array_equal(prepare(declaration, wav(raw, channels=2)), [[0.5, 0.5]])


@pytest.mark.parametrize(
    ("fields", "data", "message"),
    (
        (IMAGE, b"no picture", "cannot be read"),
        (IMAGE, png(picture())[:60], "cannot be read"),
        ({"kind": "audio", "sample_rate": 8000, "samples": 4}, wav(np.zeros(4, "<i2")), "16000 samples per second"),
        ({"kind": "audio", "sample_rate": 8000, "samples": 4}, b"RIFFxxxx", "cannot be read"),
    ),
)
def test_what_is_no_picture_and_no_recording(fields: dict[str, object], data: bytes, message: str) -> None:
    with pytest.raises(InputMismatch, match=message):
        prepare(read_preprocessing(fields), data)


def test_a_picture_that_decodes_to_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.preprocess.MAX_PIXELS", 15)
    with pytest.raises(InputMismatch, match="4x4 pixels"):
        prepare(read_preprocessing(IMAGE), png(picture()))


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"width": 0}, "width"),
        ({"mean": [0.1, 0.2]}, "mean has 2 values"),
        ({"std": [0.0]}, "std must be positive"),
        ({"shorter": 3}, "shorter"),
        ({"colour": "CMYK"}, "colour"),
        ({"sise": 4}, "sise"),
        ({"kind": "video"}, "video"),
    ),
)
def test_bad_declarations_say_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputMismatch, match=message):
        read_preprocessing(IMAGE | change)


def test_the_file_has_a_table_per_input_or_the_fields_at_the_top(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('kind = "image"\nwidth = 4\nheight = 4\n')
    assert list(load_preprocessing(path, ("x",))) == ["x"]
    with pytest.raises(InputMismatch, match="the model has x, y"):
        load_preprocessing(path, ("x", "y"))
    path.write_text('[y]\nkind = "audio"\nsample_rate = 16000\nsamples = 4\n')
    assert list(load_preprocessing(path, ("x", "y"))) == ["y"]
    with pytest.raises(InputMismatch, match="inputs are x"):
        load_preprocessing(path, ("x",))
    path.write_text("[")
    with pytest.raises(InputMismatch, match="cannot be read"):
        load_preprocessing(path, ("x",))
