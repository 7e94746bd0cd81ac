"""Resize: a builtin where its sampling positions equal ONNX's, which is computed and compared, not assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.exporters.tflite import attributes as attr
from compiler.exporters.tflite import layout
from compiler.exporters.tflite.context import LoweringContext, Unsupported, dtype_of, shape_of
from compiler.exporters.tflite.ops.shape import stored
from compiler.exporters.tflite.table import lowers
from compiler.exporters.tflite.tensors import Array, Tensor

if TYPE_CHECKING:
    import onnx_ir as ir


def _onnx_positions(mode: str, size: int, out: int, scale: float) -> Array:
    """Source position of each output element. Source: ONNX Resize, coordinate_transformation_mode."""
    x = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        length = scale * size  # not rounded: ONNX's length_resized
        return x * (size - 1) / (length - 1) if length != 1 else x * 0
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and out > 1):
        return (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return x * 0
    if mode == "half_pixel_symmetric":
        offset = size / 2 * (1 - out / (scale * size))
        return offset + (x + 0.5) / scale - 0.5
    raise Unsupported(f"coordinate_transformation_mode {mode!r} has no counterpart", "Use half_pixel or asymmetric.")


# Per builtin form: alignCorners, halfPixelCenters, and the ONNX mode with scale out / in that it computes.
FORMS = ((False, False, "asymmetric"), (False, True, "half_pixel"), (True, False, "align_corners"))


@lowers("Resize", since=11)
def resize(context: LoweringContext, node: ir.Node) -> None:
    source, output = attr.first(node), node.outputs[0]
    before, after = shape_of(source), shape_of(output)
    if len(before) != 4 or before[:2] != after[:2] or dtype_of(source) != np.float32:
        raise Unsupported("only height and width of a float32 [N, C, H, W] can be resized")
    if attr.integer(node, "antialias", 0):
        raise Unsupported("it is antialiased", "Leave out antialias.")
    mode = attr.text(node, "coordinate_transformation_mode", "half_pixel")
    scales = _scales(context, node, before, after)
    positions = [_onnx_positions(mode, before[a], after[a], scales[a - 2]) for a in (2, 3)]
    kind = attr.text(node, "mode", "nearest")
    perm = layout.channels_last(4)
    if kind == "linear":
        form = _linear_form(positions, before, after)
        code, options = "RESIZE_BILINEAR", "ResizeBilinearOptions"
        tensor = stored(context, source, perm)
    elif kind == "nearest":
        tensor = stored(context, source, perm)
        indices = [_nearest(node, positions[a - 2], before[a]) for a in (2, 3)]
        _gather_rows(context, tensor, indices, output)
        return
    else:
        raise Unsupported(f"mode {kind!r} has no counterpart", "Use nearest or linear.")
    sizes = context.literal(np.asarray(after[2:], np.int32), "size")
    result = context.produce(output, perm, tensor.quant)
    context.emit(code, [tensor, sizes], [result], options, alignCorners=form[0], halfPixelCenters=form[1])


def _scales(
    context: LoweringContext, node: ir.Node, before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[float, float]:
    if attr.operand(node, 3) is None and attr.operand(node, 2) is not None:
        given = context.required_constant(attr.operand(node, 2), "scales").astype(np.float64).ravel()
        axes = attr.integers(node, "axes") or list(range(len(before)))
        by_axis = dict(zip((a % 4 for a in axes), given, strict=True))
        return float(by_axis.get(2, 1.0)), float(by_axis.get(3, 1.0))
    return after[2] / before[2], after[3] / before[3]


def _linear_form(positions: list[Array], before: tuple[int, ...], after: tuple[int, ...]) -> tuple[bool, bool]:
    for align, half, mode in FORMS:
        builtin = [_onnx_positions(mode, before[a], after[a], after[a] / before[a]) for a in (2, 3)]
        pairs = zip(positions, builtin, before[2:], strict=True)
        if all(np.allclose(np.clip(p, 0, n - 1), np.clip(q, 0, n - 1), atol=1e-6) for p, q, n in pairs):
            return align, half
    raise Unsupported("the builtin samples at other positions", "Resize by sizes, or by a factor that divides exactly.")


def _nearest(node: ir.Node, positions: Array, size: int) -> Array:
    mode = attr.text(node, "nearest_mode", "round_prefer_floor")
    if mode == "floor":
        chosen = np.floor(positions)
    elif mode == "ceil":
        chosen = np.ceil(positions)
    elif mode == "round_prefer_ceil":
        chosen = np.floor(positions + 0.5)
    else:
        chosen = np.ceil(positions - 0.5)
    result: Array = np.clip(chosen, 0, size - 1).astype(np.int32)
    return result


def _gather_rows(context: LoweringContext, tensor: Tensor, indices: list[Array], output: ir.Value) -> None:
    """Nearest: the builtin if it picks the same elements, else one GATHER per axis. Exact either way."""
    height, width = tensor.shape[1:3]
    perm = layout.channels_last(4)
    for align, half in ((False, False), (False, True)):
        if all(
            np.array_equal(chosen, _builtin_nearest(size, chosen.size, half))
            for chosen, size in zip(indices, (height, width), strict=True)
        ):
            sizes = context.literal(np.asarray([i.size for i in indices], np.int32), "size")
            result = context.produce(output, perm, tensor.quant)
            fields = {"alignCorners": align, "halfPixelCenters": half}
            context.emit("RESIZE_NEAREST_NEIGHBOR", [tensor, sizes], [result], "ResizeNearestNeighborOptions", **fields)
            return
    rows = context.temporary((tensor.shape[0], indices[0].size, width, tensor.shape[3]), tensor)
    context.emit("GATHER", [tensor, context.literal(indices[0], "rows")], [rows], "GatherOptions", axis=1)
    result = context.produce(output, perm, tensor.quant)
    context.emit("GATHER", [rows, context.literal(indices[1], "columns")], [result], "GatherOptions", axis=2)


def _builtin_nearest(size: int, out: int, half: bool) -> Array:
    """resize_nearest_neighbor.cc in float32: min(floor((x + offset) * in / out), in - 1)."""
    scale = np.float32(size) / np.float32(out)
    position = np.floor((np.arange(out, dtype=np.float32) + np.float32(0.5 if half else 0)) * scale)
    result: Array = np.minimum(position, size - 1).astype(np.int32)
    return result
