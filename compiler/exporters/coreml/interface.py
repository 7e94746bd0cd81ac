"""What an app sees beside tensors: pictures as inputs, classes by name, sizes that may vary.

Source: coremltools, "Image Input and Output", "Flexible Input Shapes" and ClassifierConfig; the format's FeatureTypes.proto.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters.base import Pixels
from compiler.exporters.coreml.flexible import Sizes
from compiler.exporters.coreml.target import Var
from compiler.exporters.coreml.unsupported import Unsupported

if TYPE_CHECKING:
    from compiler.exporters.coreml.context import Context

IMAGES_KEY = "edgewright.images"
COLOUR_SPACES = {"GRAY": 10, "RGB": 20, "BGR": 30}  # ImageFeatureType.ColorSpace in FeatureTypes.proto
CHANNELS = {"GRAY": 1, "RGB": 3, "BGR": 3}


@dataclass(frozen=True, slots=True)
class Classifier:
    """``scores``: the MIL name of the output that is given by class; ``label`` and ``by_class``: what stands for it."""

    scores: str
    classes: tuple[str, ...]
    label: str

    @property
    def by_class(self) -> str:
        return f"{self.label}_probs"  # the name that coremltools gives


def picture_shape(shape: Sequence[Any], pixels: Pixels) -> tuple[Any, ...]:
    """The placeholder's shape [1, C, height, width] for a model's input of ``shape``. Raises Unsupported."""
    if len(shape) != 4 or shape[0] != 1:
        raise Unsupported(
            f"its shape {list(shape)} is not that of one picture", "Build it with --batch 1, or leave out images=true."
        )
    turned = tuple(shape) if pixels.layout == "NCHW" else (shape[0], shape[3], shape[1], shape[2])
    if turned[1] != CHANNELS[pixels.colour]:
        raise Unsupported(f"it has {turned[1]} channels, a {pixels.colour} picture has {CHANNELS[pixels.colour]}")
    return turned


def unpack_picture(ctx: Context, picture: Var, pixels: Pixels, name: str) -> Var:
    """The model's input from the placeholder's pixels: x = pixel * scale + bias, in float32, then its layout."""
    x = picture
    for part, neutral, operation in ((pixels.scale, 1.0, ctx.mb.mul), (pixels.bias, 0.0, ctx.mb.add)):
        if any(value != neutral for value in part):
            values = np.array(part, np.float32)
            y = values[0] if len(set(part)) == 1 else values.reshape(1, -1, 1, 1)
            x = operation(x=x, y=y, name=ctx.names.claim(f"{name}_pixels"))
    if pixels.layout == "NHWC":
        x = ctx.mb.transpose(x=x, perm=[0, 2, 3, 1], name=ctx.names.claim(f"{name}_channels_last"))
    return x


def find_classifier(ctx: Context, outputs: Mapping[str, Sequence[Any]], classes: tuple[str, ...]) -> Classifier | None:
    """Which of ``outputs`` (MIL name to shape) has a score for each class; the first one that does. Raises Unsupported."""
    if not classes:
        return None
    if len(set(classes)) != len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise Unsupported(f"two classes are called {twice!r}", "Give every class a name of its own.")
    for name, shape in outputs.items():
        if all(isinstance(d, int) for d in shape) and math.prod(shape) == len(classes):
            return Classifier(name, classes, _free_label(ctx))
    raise Unsupported(
        f"no output has one score for each of {len(classes)} classes",
        "Correct the labels, or leave out classifier=true.",
    )


def _free_label(ctx: Context) -> str:
    """A name that no value has, and that has none with what coremltools puts behind it."""
    label = ctx.names.claim("classLabel")
    while ctx.names.claim(f"{label}_probs") != f"{label}_probs":
        label = ctx.names.claim("classLabel")
    return label


def describe_inputs(
    specification: Any,
    pictures: Mapping[str, Pixels],
    flexible: Mapping[str, Sizes],
    defaults: Mapping[str, Sequence[int]],
) -> None:
    """Give the features their picture types and sizes. All mappings are by MIL name; ``defaults``: the hub's shapes."""
    for feature in specification.description.input:
        pixels, sizes = pictures.get(feature.name), flexible.get(feature.name)
        if pixels is not None:
            _describe_picture(feature, pixels, sizes, defaults[feature.name])
        elif sizes is not None:
            _describe_sizes(feature.type.multiArrayType, sizes, defaults[feature.name])
    if pictures:
        written = {name: asdict(pixels) for name, pixels in sorted(pictures.items())}
        specification.description.metadata.userDefined[IMAGES_KEY] = json.dumps(written)


def _describe_sizes(array: Any, sizes: Sizes, default: Sequence[int]) -> None:
    array.shape[:] = default
    array.ClearField("shapeRange")  # coremltools' guess for symbols: any size
    if len(sizes) == 1:
        for low, high in sizes[0]:
            array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
    else:
        for shape in sizes:
            array.enumeratedShapes.shapes.add(shape=[low for low, _ in shape])


def _describe_picture(feature: Any, pixels: Pixels, sizes: Sizes | None, default: Sequence[int]) -> None:
    tall, wide = (2, 3) if pixels.layout == "NCHW" else (1, 2)
    feature.type.Clear()
    image = feature.type.imageType
    image.height, image.width = default[tall], default[wide]
    image.colorSpace = COLOUR_SPACES[pixels.colour]
    if sizes is None:
        return
    if len(sizes) == 1:
        limits = image.imageSizeRange
        limits.heightRange.lowerBound, limits.heightRange.upperBound = sizes[0][tall]
        limits.widthRange.lowerBound, limits.widthRange.upperBound = sizes[0][wide]
    else:
        for shape in sizes:
            image.enumeratedSizes.sizes.add(height=shape[tall][0], width=shape[wide][0])
