"""From a picture or a recording to a model's input, by a declaration that the build machine and the board share.

    image:  decode -> resize -> colour -> x = (pixel * scale - mean) / std -> layout
    audio:  decode -> one channel -> x = sample * scale -> padded or cut to a length

Declared once (`edgewright build --preprocess FILE`), used for calibration and evaluation, written into the manifest, and applied by
the agent to what clients send. Pillow decodes and resizes on both sides, so that they compute the same numbers.
"""

from __future__ import annotations

import io
import tomllib
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from runtimes.artifact.schema import Field, Schema
from runtimes.errors import InputMismatch, RuntimeMissing
from runtimes.session import Array

MAX_PIXELS: Final = 64 << 20  # of a picture as it comes; a small file may decode to gigabytes
MAX_SECONDS: Final = 600


class _Declaration(Schema, extra="forbid"):
    pass


class ImageInput(_Declaration):
    """A picture of any size as [1, C, H, W] or [1, H, W, C] float32.

    Args:
        resize: "stretch" to the size; "crop": the shorter side to ``shorter`` (default: just covering), then the middle; "pad":
            the whole picture, centred on ``mean``-coloured bars (0 after normalisation).
        mean, std: per channel or one for all, in units after ``scale``.
    """

    kind: Literal["image"]
    width: int = Field(gt=0, le=8192)
    height: int = Field(gt=0, le=8192)
    resize: Literal["stretch", "crop", "pad"] = "crop"
    shorter: int | None = Field(default=None, gt=0, le=8192)
    filter: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    colour: Literal["RGB", "BGR", "GRAY"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: float = Field(default=1 / 255, gt=0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def channels(self) -> int:
        return 1 if self.colour == "GRAY" else 3

    def validate_whole(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channel(s)")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if self.shorter is not None and (self.resize != "crop" or self.shorter < min(self.width, self.height)):
            raise ValueError("shorter is for resize 'crop', and at least as large as what is cut out")


class AudioInput(_Declaration):
    """A WAV file (PCM of 8, 16, 24 or 32 bits) as [1, samples] float32, channels averaged, silence behind a short one."""

    kind: Literal["audio"]
    sample_rate: int = Field(gt=0, le=768_000)
    samples: int = Field(gt=0)
    scale: float = Field(default=1.0, gt=0)  # of samples in [-1, 1)


_KINDS: Final[dict[str, type[ImageInput] | type[AudioInput]]] = {"image": ImageInput, "audio": AudioInput}


def read_preprocessing(data: Mapping[str, Any]) -> ImageInput | AudioInput:
    """Check one declaration. Raises InputMismatch."""
    kind = data.get("kind")
    try:
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"kind: expected {' or '.join(map(repr, _KINDS))}, found {kind!r}")
        return _KINDS[kind].model_validate(data)
    except ValueError as error:
        raise InputMismatch(
            f"The preprocessing cannot be used: {error}.", remedy="See docs/data.md for its fields."
        ) from error


def load_preprocessing(path: Path, inputs: tuple[str, ...]) -> dict[str, ImageInput | AudioInput]:
    """Read a TOML file: one table per input, or for a model with one input the fields at the top. Raises InputMismatch."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputMismatch(f"{path} cannot be read: {error}.", remedy="Give a TOML file, see docs/data.md.") from error
    if "kind" in document:
        if len(inputs) != 1:
            raise InputMismatch(
                f"{path} declares one input, the model has {', '.join(inputs)}.", remedy="Give a table per input."
            )
        document = {inputs[0]: document}
    unknown = sorted(set(document) - set(inputs))
    if unknown or not document:
        raise InputMismatch(
            f"{path} declares {unknown or 'nothing'}, the model's inputs are {', '.join(inputs)}.",
            remedy="Name the tables as the model's inputs.",
        )
    return {name: read_preprocessing(table) for name, table in document.items()}


def shape_of(declaration: ImageInput | AudioInput) -> tuple[int, ...]:
    """The shape of one prepared sample, batch axis included."""
    if isinstance(declaration, AudioInput):
        return (1, declaration.samples)
    picture = (declaration.height, declaration.width)
    channels = declaration.channels
    return (1, channels, *picture) if declaration.layout == "NCHW" else (1, *picture, channels)


def prepare(declaration: ImageInput | AudioInput, data: bytes) -> Array:
    """One sample, float32, batch axis in front.

    Raises:
        InputMismatch: the bytes are no picture or recording, too large, or of another sample rate.
        RuntimeMissing: Pillow is not installed.
    """
    return _audio(declaration, data) if isinstance(declaration, AudioInput) else _image(declaration, data)


def _image(declaration: ImageInput, data: bytes) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise RuntimeMissing("Pictures need Pillow.", remedy="Run pip install 'edgewright[images]'.") from error
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputMismatch(
                    f"The picture has {opened.width}x{opened.height} pixels, at most {MAX_PIXELS} are taken.",
                    remedy="Send a smaller one.",
                )
            picture = opened.convert("L" if declaration.colour == "GRAY" else "RGB")
            picture = _resized(declaration, picture)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputMismatch(f"The picture cannot be read: {error}.", remedy="Send a PNG or JPEG.") from error
    return _normalised(declaration, picture)


def prepare_pixels(declaration: ImageInput, pixels: Array) -> Array:
    """One sample from a picture of the declared size that is decoded already: uint8 [height, width, 3 (RGB) or 1]."""
    return _normalised(declaration, pixels)


def _resized(declaration: ImageInput, picture: Any) -> Any:
    from PIL import Image

    kernel = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}.get(
        declaration.filter, Image.Resampling.BICUBIC
    )
    width, height = declaration.width, declaration.height
    if declaration.resize == "stretch":
        return picture.resize((width, height), kernel)
    across, down = width / picture.width, height / picture.height
    if declaration.resize == "crop":
        factor = max(across, down)
        if declaration.shorter is not None:
            factor = declaration.shorter / min(picture.width, picture.height)
    else:
        factor = min(across, down)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    if declaration.resize == "crop":
        size = (max(size[0], width), max(size[1], height))
        scaled = picture.resize(size, kernel)
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        return scaled.crop((left, top, left + width, top + height))
    return picture.resize((min(size[0], width), min(size[1], height)), kernel)


def _normalised(declaration: ImageInput, picture: Any) -> Array:
    """[1, ...] float32; where the picture was not padded to size yet, the bars are 0."""
    pixels = np.asarray(picture, np.float32)
    pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    if declaration.colour == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = np.asarray(declaration.mean, np.float32), np.asarray(declaration.std, np.float32)
    values = (pixels * np.float32(declaration.scale) - mean) / std
    whole = np.zeros((declaration.height, declaration.width, declaration.channels), np.float32)
    top, left = (declaration.height - values.shape[0]) // 2, (declaration.width - values.shape[1]) // 2
    whole[top : top + values.shape[0], left : left + values.shape[1]] = values
    ordered = whole.transpose(2, 0, 1) if declaration.layout == "NCHW" else whole
    return np.ascontiguousarray(ordered)[np.newaxis]


def _audio(declaration: AudioInput, data: bytes) -> Array:
    try:
        with wave.open(io.BytesIO(data)) as file:
            if file.getframerate() != declaration.sample_rate:
                raise InputMismatch(
                    f"The recording has {file.getframerate()} samples per second, the model takes {declaration.sample_rate}.",
                    remedy="Resample it before it is sent.",
                )
            channels, width = file.getnchannels(), file.getsampwidth()
            frames = file.readframes(min(file.getnframes(), declaration.sample_rate * MAX_SECONDS))
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise InputMismatch(f"The recording cannot be read: {error}.", remedy="Send a PCM WAV file.") from error
    values = _pcm(frames[: len(frames) // (channels * width) * channels * width], width)
    mono = values.reshape(-1, channels).mean(axis=1, dtype=np.float32) * np.float32(declaration.scale)
    fitted = np.zeros((1, declaration.samples), np.float32)
    fitted[0, : min(len(mono), declaration.samples)] = mono[: declaration.samples]
    return fitted


def _pcm(frames: bytes, width: int) -> Array:
    """Samples in [-1, 1): 8 bits are unsigned in WAV, wider ones signed."""
    if width == 1:
        return (np.frombuffer(frames, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        parts = np.frombuffer(frames, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = parts[:, 0] | parts[:, 1] << 8 | parts[:, 2] << 16
        return (whole - ((whole & 0x800000) << 1)).astype(np.float32) / (1 << 23)
    return np.frombuffer(frames, f"<i{width}").astype(np.float32) / (1 << (8 * width - 1))
