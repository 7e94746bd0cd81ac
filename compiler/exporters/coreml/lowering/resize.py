"""Resize of the spatial axes, in the modes where ONNX and Core ML sample the same points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.coreml.context import (
    Context,
    Unsupported,
    int_attr,
    ints_attr,
    is_fixed,
    output_shape,
    string_attr,
)
from compiler.exporters.coreml.lowering.shape import reshape_to
from compiler.exporters.coreml.lowering.table import LOWERINGS
from compiler.exporters.coreml.target import Var

if TYPE_CHECKING:
    import onnx_ir as ir

# ONNX's coordinate transformation to MIL's sampling mode: the same grid points, both clamped to the edge.
#   half_pixel     x = (i + 0.5) * in/out - 0.5      UNALIGN_CORNERS
#   align_corners  x = i * (in - 1) / (out - 1)      STRICT_ALIGN_CORNERS
#   asymmetric     x = i * in/out                    DEFAULT
_SAMPLING = {
    "half_pixel": "UNALIGN_CORNERS",
    "pytorch_half_pixel": "UNALIGN_CORNERS",
    "align_corners": "STRICT_ALIGN_CORNERS",
    "asymmetric": "DEFAULT",
}


@LOWERINGS.lowers("Resize", since=11)
def resize(ctx: Context, node: ir.Node) -> None:
    """x: [..., height, width]; rank 3 is treated as one row."""
    x = ctx.input(node, 0)
    if not is_fixed(x.shape):
        ctx.set(node.outputs[0], _by_factors(ctx, node, x))
        return
    out = output_shape(node)
    _check(ctx, node, tuple(x.shape), out)
    flat = x.rank == 3
    if flat:
        x = reshape_to(ctx, node, x, (*x.shape[:2], 1, x.shape[2]), "_rows")
    height, width = (1, out[-1]) if flat else out[-2:]
    if string_attr(node, "mode", "nearest") == "nearest":
        result = _nearest(ctx, node, x, height, width)
    else:
        result = _linear(ctx, node, x, height, width)
    ctx.set(node.outputs[0], reshape_to(ctx, node, result, out, "_line") if flat else result)


def _by_factors(ctx: Context, node: ir.Node, x: Var) -> Var:
    """Whole upsampling factors, which need no sizes: nearest by copies, linear between pixel centres since iOS16."""
    scales = ctx.constant(node, 2)
    if scales is None or scales.size != 4 or x.rank != 4 or "axes" in node.attributes:
        raise Unsupported(
            "it resizes to a size, and its input is flexible", "State scales for all axes, or fix the sizes."
        )
    tall, wide = (float(scale) for scale in scales[2:])
    if list(scales[:2]) != [1, 1] or not (tall.is_integer() and wide.is_integer()):
        raise Unsupported(f"flexible sizes are resized by whole factors of height and width, found {scales.tolist()}")
    if string_attr(node, "mode", "nearest") == "nearest":
        _require_copies(node, tall, wide)
        return ctx.mb.upsample_nearest_neighbor(
            x=x, scale_factor_height=int(tall), scale_factor_width=int(wide), name=ctx.name(node)
        )
    transform = string_attr(node, "coordinate_transformation_mode", "half_pixel")
    if string_attr(node, "mode", "nearest") != "linear" or transform != "half_pixel" or ctx.target.version < 16:
        raise Unsupported("flexible sizes are resized by nearest, or linear with half_pixel since iOS16")
    return ctx.mb.upsample_bilinear(
        x=x,
        scale_factor_height=tall,
        scale_factor_width=wide,
        align_corners=False,
        half_pixel_centers=True,
        name=ctx.name(node),
    )


def _check(ctx: Context, node: ir.Node, sizes: tuple[int, ...], out: tuple[int, ...]) -> None:
    if len(sizes) not in (3, 4):
        raise Unsupported(f"Core ML resizes rank 3 and 4, found {len(sizes)}")
    if sizes[:2] != out[:2]:
        raise Unsupported(f"it resizes other axes than height and width ({sizes} to {out})")
    if int_attr(node, "antialias", 0) or int_attr(node, "exclude_outside", 0):
        raise Unsupported("Core ML's resize has neither antialias nor exclude_outside")
    if string_attr(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("Core ML's resize does not keep the aspect ratio")
    scales = ctx.constant(node, 2)
    if scales is None or not scales.size:
        return
    axes = [a % len(sizes) for a in ints_attr(node, "axes", range(len(sizes)))]
    exact = [out[axis] == np.float32(scale) * sizes[axis] for axis, scale in zip(axes, scales, strict=True)]
    if not all(exact) and string_attr(node, "coordinate_transformation_mode", "half_pixel") != "align_corners":
        # ONNX samples by the scale given, Core ML by the ratio of the sizes: they part where the product is rounded.
        raise Unsupported(f"its scales {scales.tolist()} do not give whole sizes", "State sizes instead of scales.")


def _nearest(ctx: Context, node: ir.Node, x: Var, height: int, width: int) -> Var:
    tall, wide = height / x.shape[-2], width / x.shape[-1]
    _require_copies(node, tall, wide, single=1 in (height, width))
    return ctx.mb.upsample_nearest_neighbor(
        x=x, scale_factor_height=int(tall), scale_factor_width=int(wide), name=ctx.name(node)
    )


def _require_copies(node: ir.Node, tall: float, wide: float, single: bool = False) -> None:
    """Whole factors only, in the modes where every copy of a pixel rounds to that pixel. Raises Unsupported.

    ``single``: whether a side of the result has one element, which pytorch_half_pixel places differently.
    """
    transform = string_attr(node, "coordinate_transformation_mode", "half_pixel")
    rounding = string_attr(node, "nearest_mode", "round_prefer_floor")
    copies = (transform == "asymmetric" and rounding == "floor") or (
        transform in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel") and rounding.startswith("round")
    )
    if not copies or (single and transform == "pytorch_half_pixel") or not (tall.is_integer() and wide.is_integer()):
        raise Unsupported(
            f"nearest by {tall:g} x {wide:g} in mode {transform}/{rounding} has no equivalent",
            "Use whole upsampling factors with mode asymmetric/floor or half_pixel/round_prefer_floor.",
        )


def _linear(ctx: Context, node: ir.Node, x: Var, height: int, width: int) -> Var:
    mode = string_attr(node, "mode", "nearest")
    transform = string_attr(node, "coordinate_transformation_mode", "half_pixel")
    if mode != "linear" or transform not in _SAMPLING:
        raise Unsupported(f"mode {mode!r} with {transform!r} has no equivalent in Core ML")
    shrunk_to_one = any(o == 1 and i > 1 for o, i in zip((height, width), x.shape[-2:], strict=True))
    if shrunk_to_one and transform != "half_pixel":
        raise Unsupported(f"{transform!r} to a single element is sampled differently by Core ML")
    return ctx.mb.resize_bilinear(
        x=x,
        target_size_height=height,
        target_size_width=width,
        sampling_mode=_SAMPLING[transform],
        name=ctx.name(node),
    )
