"""Resizing. Source: LiteRT's resize_bilinear.h and resize_nearest_neighbor.h (ComputeInterpolationValues, GetNearestNeighbor)."""

from __future__ import annotations

from compiler.importers.tflite.builder import CHANNELS_FIRST, Builder
from compiler.importers.tflite.reader import Operator
from compiler.importers.tflite.table import reads


@reads("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
def resize(b: Builder, op: Operator) -> None:
    """Nearest: aligned corners round halves up, half pixels take floor((x + 0.5) * scale), the rest floor(x * scale)."""
    batch, height, width, channels = b.shape(op.outputs[0])
    if op.option("alignCorners", False):
        coordinates, rounding = "align_corners", "round_prefer_ceil"
    elif op.option("halfPixelCenters", False):
        coordinates, rounding = (
            "half_pixel",
            "round_prefer_ceil",
        )  # half_pixel takes 0.5 off, the rounding brings it back
    else:
        coordinates, rounding = "asymmetric", "floor"
    nearest = op.type == "RESIZE_NEAREST_NEIGHBOR"
    result = b.emit(
        "Resize",
        [b.read(op.inputs[0], CHANNELS_FIRST), "", "", b.ints([batch, channels, height, width])],
        mode="nearest" if nearest else "linear",
        coordinate_transformation_mode=coordinates,
        **({"nearest_mode": rounding} if nearest else {}),
    )
    b.bind(op.outputs[0], result, CHANNELS_FIRST)
