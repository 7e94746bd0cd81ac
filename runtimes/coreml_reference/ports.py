"""A package's inputs and outputs as its description states them: tensors, pictures, sizes that vary, scores by class.

Source: FeatureTypes.proto and Model.proto of the Core ML format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from runtimes.coreml_reference.proto import array_type_name
from runtimes.errors import InputMismatch, ModelLoadError
from runtimes.session import Array, Feeds, TensorSpec, check_feeds

INPUTS_KEY, OUTPUTS_KEY, IMAGES_KEY = "edgewright.inputs", "edgewright.outputs", "edgewright.images"
_ARRAY_TYPES = {"FLOAT16": "float16", "FLOAT32": "float32", "DOUBLE": "float64", "INT32": "int32", "INT8": "int8"}
# ImageFeatureType.ColorSpace in FeatureTypes.proto: name, channels.
_COLOURS = {10: ("GRAY", 1), 20: ("RGB", 3), 30: ("BGR", 3)}
_REMEDY = "Export the package again with tensors or 8-bit pictures as inputs, and tensors or classes as outputs."
_PIXEL_REMEDY = "Prepare pictures as the package's preprocessing says; its pixels go from 0 to 255."
UNLIMITED: Final = -1  # SizeRange.upperBound of a size without a limit

Sizes = tuple[tuple[tuple[int, int], ...], ...]  # for each shape and axis the least and the largest size


@dataclass(frozen=True, slots=True)
class Picture:
    """An input of pixels. The model's numbers are pixel * scale + bias for each channel; empty where pixels are fed as they are.

    ``layout``: of what the session is fed. A session of pixels is fed uint8 [1, height, width, channels].
    """

    colour: str
    channels: int
    layout: str = "NHWC"
    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()

    def pixels(self, array: Array, name: str) -> Array:
        """uint8 [height, width, channels] in the package's colour order. Raises InputMismatch where no pixels give ``array``."""
        rows: Array = array[0] if self.layout == "NHWC" else array[0].transpose(1, 2, 0)
        if not self.scale:
            return rows
        exact = (rows.astype(np.float64) - np.array(self.bias)) / np.array(self.scale)
        codes = np.rint(exact)
        if not (np.isfinite(exact).all() and codes.min(initial=0) >= 0 and codes.max(initial=0) <= 255):
            raise InputMismatch(
                f"Input {name!r} would need pixels from {exact.min():g} to {exact.max():g}.", remedy=_PIXEL_REMEDY
            )
        return np.asarray(codes.astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output: its name in the program, and how the session shows it.

    ``sizes``: what a flexible input takes. ``classes``: an output that comes as a score for each of these names.
    """

    mil_name: str
    spec: TensorSpec
    sizes: Sizes = ()
    picture: Picture | None = None
    classes: tuple[str | int, ...] = ()


def read_both(spec: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of a ``CoreML.Specification.Model``.

    Raises:
        ModelLoadError: a feature is of a kind that no session takes or gives, or the metadata of names is damaged.
    """
    metadata = dict(spec.description.metadata.userDefined)
    originals, answers = name_map(metadata, INPUTS_KEY), name_map(metadata, OUTPUTS_KEY)
    pictures = _pictures(metadata)
    inputs = tuple(_input(f, originals.get(f.name, f.name), pictures.get(f.name)) for f in spec.description.input)
    outputs = tuple(_output(spec, f, answers.get(f.name, f.name)) for f in spec.description.output)
    return inputs, outputs


def fit_feeds(ports: tuple[Port, ...], feeds: Feeds) -> dict[str, Array]:
    """``feeds`` in the types that the package carries: a multi-array has no 64-bit integers, no doubles, no Booleans.

    Raises:
        InputMismatch: names, types or shapes differ, a number is not one of the package's type, or a flexible input is fed a
            size that it does not take.
    """
    specs = {port.spec.name: port.spec for port in ports}
    fitted = {name: _carried(array, specs[name]) if name in specs else array for name, array in feeds.items()}
    check_feeds(tuple(specs.values()), fitted)
    for port in ports:
        shape = fitted[port.spec.name].shape
        if port.sizes and not any(_within(shape, sizes) for sizes in port.sizes):
            raise InputMismatch(
                f"Input {port.spec.name!r} is {'x'.join(map(str, shape))}, the model takes {_shown(port.sizes)}.",
                remedy="Resize or pad it to a size that the model takes, or export the model with other sizes.",
            )
    return fitted


def _carried(array: Array, spec: TensorSpec) -> Array:
    """Integers and Booleans in another integer type, floats in another float type; what differs otherwise stays for the check."""
    wanted = np.dtype(spec.dtype)
    whole, wide = (
        array.dtype.kind in "biu" and wanted.kind in "iu",
        wanted.kind == "f" and (array.dtype.kind == "f" or array.dtype.name == "bfloat16"),
    )
    if array.dtype == wanted or not (whole or wide):
        return array
    with np.errstate(over="ignore"):  # what leaves the range is refused below
        cast = array.astype(wanted)
    kept = np.array_equal(cast.astype(array.dtype), array) if whole else not np.any(np.isinf(cast) & np.isfinite(array))
    if not kept:
        raise InputMismatch(
            f"Input {spec.name!r} holds numbers from {array.min()} to {array.max()}, the package carries {spec.dtype}.",
            remedy=f"Feed numbers that {spec.dtype} holds.",
        )
    return cast


def _within(shape: Sequence[int], sizes: Sequence[tuple[int, int]]) -> bool:
    pairs = zip(shape, sizes, strict=True)
    return all(low <= d and (high == UNLIMITED or d <= high) for d, (low, high) in pairs)


def _shown(sizes: Sizes) -> str:
    def one(low: int, high: int) -> str:
        return str(low) if low == high else f"{low}..{'' if high == UNLIMITED else high}"

    return " or ".join("x".join(one(*size) for size in shape) for shape in sizes)


def name_map(metadata: Mapping[str, str], key: str) -> dict[str, str]:
    """{MIL name: original name} from user-defined metadata; empty if the package carries none.

    Raises:
        ModelLoadError: the entry is not a JSON object of strings with distinct values.
    """
    names = _json(metadata, key)
    valid = isinstance(names, dict) and all(isinstance(v, str) for v in names.values())
    if not valid or len(set(names.values())) != len(names):
        raise ModelLoadError(f"Metadata {key!r} does not map names to distinct names.", remedy=_REMEDY)
    return dict(names)


def _json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"Metadata {key!r} is not JSON: {error}.", remedy=_REMEDY) from error


def _pictures(metadata: Mapping[str, str]) -> dict[str, Picture]:
    """How our own packages turn pixels into numbers, by MIL name. Raises ModelLoadError."""
    try:
        return {
            str(name): Picture(
                str(how["colour"]),
                1 if how["colour"] == "GRAY" else 3,
                str(how["layout"]),
                tuple(float(v) for v in how["scale"]),
                tuple(float(v) for v in how["bias"]),
            )
            for name, how in _json(metadata, IMAGES_KEY).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"Metadata {IMAGES_KEY!r} is malformed: {error!r}.", remedy=_REMEDY) from error


def _input(feature: Any, name: str, picture: Picture | None) -> Port:
    if feature.type.WhichOneof("Type") == "imageType":
        return _picture_port(feature, name, picture)
    sizes = _sizes(feature.type.multiArrayType)
    return Port(feature.name, _tensor_spec(feature, name), sizes)


def _picture_port(feature: Any, name: str, known: Picture | None) -> Port:
    image = feature.type.imageType
    if image.colorSpace not in _COLOURS:
        raise ModelLoadError(f"{feature.name!r} is a picture in colour space {image.colorSpace}.", remedy=_REMEDY)
    colour, channels = _COLOURS[image.colorSpace]
    picture = known or Picture(colour, channels)
    if picture.colour != colour or picture.layout not in ("NCHW", "NHWC") or 0 in picture.scale:
        raise ModelLoadError(f"Metadata {IMAGES_KEY!r} disagrees with the picture {feature.name!r}.", remedy=_REMEDY)
    sizes = tuple(_picture_shape(picture, *shape) for shape in _picture_sizes(image))
    fixed = _picture_shape(picture, (image.height, image.height), (image.width, image.width))
    spec = TensorSpec(name, "float32" if picture.scale else "uint8", _open(sizes or (fixed,)))
    return Port(feature.name, spec, sizes, picture)


def _picture_shape(picture: Picture, tall: tuple[int, int], wide: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    one, channels = (1, 1), (picture.channels, picture.channels)
    return (one, channels, tall, wide) if picture.layout == "NCHW" else (one, tall, wide, channels)


def _picture_sizes(image: Any) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    kind = image.WhichOneof("SizeFlexibility")
    if kind == "imageSizeRange":
        tall, wide = image.imageSizeRange.heightRange, image.imageSizeRange.widthRange
        return [((tall.lowerBound, tall.upperBound), (wide.lowerBound, wide.upperBound))]
    if kind == "enumeratedSizes":
        return [((s.height, s.height), (s.width, s.width)) for s in image.enumeratedSizes.sizes]
    return []


def _sizes(array: Any) -> Sizes:
    kind = array.WhichOneof("ShapeFlexibility")
    if kind == "shapeRange":
        return (tuple((int(r.lowerBound), int(r.upperBound)) for r in array.shapeRange.sizeRanges),)
    if kind == "enumeratedShapes":
        return tuple(tuple((int(d), int(d)) for d in s.shape) for s in array.enumeratedShapes.shapes)
    return ()


def _open(sizes: Sizes) -> tuple[int | None, ...]:
    """The shape with None where sizes vary. Raises ValueError for shapes of different ranks."""
    columns = zip(*sizes, strict=True)
    return tuple(c[0][0] if len(set(c)) == 1 and c[0][0] == c[0][1] else None for c in columns)


def _tensor_spec(feature: Any, name: str) -> TensorSpec:
    kind = feature.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise ModelLoadError(f"{feature.name!r} is a {kind}, not a multi-array.", remedy=_REMEDY)
    array = feature.type.multiArrayType
    dtype = array_type_name(array.dataType)
    if dtype not in _ARRAY_TYPES:
        raise ModelLoadError(f"{feature.name!r} has the element type {dtype}.", remedy=_REMEDY)
    try:
        sizes = _sizes(array)
        return TensorSpec(name, _ARRAY_TYPES[dtype], _open(sizes) if sizes else tuple(int(d) for d in array.shape))
    except ValueError as error:
        raise ModelLoadError(f"{feature.name!r} lists shapes of different ranks.", remedy=_REMEDY) from error


def _output(spec: Any, feature: Any, name: str) -> Port:
    kind = feature.type.WhichOneof("Type")
    if kind in ("stringType", "int64Type"):
        return Port(feature.name, TensorSpec(name, "str" if kind == "stringType" else "int64", (1,)))
    if kind == "dictionaryType":
        classes, shape = _classes(spec, feature.name)
        return Port(feature.name, TensorSpec(name, "float32", shape), classes=classes)
    described = _tensor_spec(feature, name)
    if not described.shape:  # coremltools leaves out the shape of a flexible output
        declared = _declared(spec, feature.name)
        described = TensorSpec(name, described.dtype, declared) if declared else described
    return Port(feature.name, described)


def _operations(spec: Any) -> Sequence[Any]:
    function = spec.mlProgram.functions.get(spec.description.defaultFunctionName or "main")
    blocks = function.block_specializations if function is not None else {}
    return blocks[function.opset].operations if function is not None and function.opset in blocks else ()


def _declared(spec: Any, name: str) -> tuple[int | None, ...]:
    """The shape that the program declares for the value ``name``; () if it declares none."""
    for operation in _operations(spec):
        for output in operation.outputs:
            if output.name == name and output.type.WhichOneof("type") == "tensorType":
                dims = output.type.tensorType.dimensions
                return tuple(int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in dims)
    return ()


def _classes(spec: Any, name: str) -> tuple[tuple[str | int, ...], tuple[int | None, ...]]:
    """Names of the classes whose scores the dictionary ``name`` holds, and the shape of the scores. Raises ModelLoadError."""
    for operation in _operations(spec):
        if operation.type == "classify" and name in [output.name for output in operation.outputs]:
            values = [b.value.immediateValue.list.values for b in operation.inputs["classes"].arguments]
            tensors = [item.immediateValue.tensor for group in values for item in group]
            classes = tuple(v for t in tensors for v in (*t.strings.values, *(int(i) for i in t.longInts.values)))
            scores = [b.name for b in operation.inputs["probabilities"].arguments]
            shape = _declared(spec, scores[0]) if scores else ()
            if not classes or len(set(classes)) != len(classes):
                raise ModelLoadError(f"The classes of {name!r} are missing or not distinct.", remedy=_REMEDY)
            fits = all(d is not None for d in shape) and math.prod(d or 0 for d in shape) == len(classes)
            return classes, shape if fits else (1, len(classes))
    raise ModelLoadError(f"{name!r} is a dictionary that no classify operation makes.", remedy=_REMEDY)
