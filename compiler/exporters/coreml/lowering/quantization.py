"""QuantizeLinear and DequantizeLinear: the same scales and zero points as the hub.

Both run in float32 whatever the artifact's precision: a float16 scale is off by up to 2**-11, which moves
round(x / scale) by a step for one value in a few, and a step is the whole tolerance between artifacts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from compiler.exporters.coreml.constants import Array, Weight
from compiler.exporters.coreml.context import Context, Unsupported, int_attr, optional_input
from compiler.exporters.coreml.lowering.table import LOWERINGS

if TYPE_CHECKING:
    import onnx_ir as ir


@LOWERINGS.lowers("QuantizeLinear")
def quantize_linear(ctx: Context, node: ir.Node) -> None:
    """q = clip(rint(x / scale) + zero_point), ties to even."""
    x = ctx.input(node, 0)
    scale, zero, axis = _parameters(ctx, node, x.rank)
    if (
        zero.dtype == np.int16 and not zero.any()
    ):  # no such activations here: float16 has eleven bits of its own (docs/adr/0015)
        ctx.set(node.outputs[0], x)
        return
    _require_bytes(ctx, zero)
    result = ctx.mb.quantize(
        input=x,
        scale=_unwrap(scale),
        zero_point=_unwrap(zero),
        axis=axis,
        output_dtype=str(zero.dtype),
        name=ctx.name(node),
    )
    ctx.set(node.outputs[0], result)


@LOWERINGS.lowers("DequantizeLinear")
def dequantize_linear(ctx: Context, node: ir.Node) -> None:
    """x = (q - zero_point) * scale. A constant stays quantized in the file and is written where it is used."""
    source = optional_input(node, 0)
    if source is None:
        raise Unsupported("its input 0 is missing")
    if ctx.is_constant(source):
        ctx.set_weight(node.outputs[0], _constant(ctx, node, ctx.weight(source)))
        return
    x = ctx.var(source)
    scale, zero, axis = _parameters(ctx, node, x.rank)
    if zero.dtype == np.int16 and not zero.any():
        ctx.set(node.outputs[0], x)
        return
    _require_bytes(ctx, zero)
    result = ctx.mb.dequantize(input=x, scale=_unwrap(scale), zero_point=_unwrap(zero), axis=axis, name=ctx.name(node))
    ctx.set(node.outputs[0], result)


def _constant(ctx: Context, node: ir.Node, source: Weight) -> Weight:
    """An integer weight or bias as the file will hold it."""
    data, palette = source.values(), source.palette
    if data.dtype in (np.int8, np.uint8) and ctx.target.version < 16:
        raise Unsupported(
            f"integer weights need iOS16, the deployment target is {ctx.target.name}",
            "Raise the deployment target, or build fp16 for this one.",
        )
    blocks = int_attr(node, "block_size", 0)
    if (blocks or data.dtype == ml_dtypes.int4) and ctx.target.version < 18:
        raise Unsupported(
            f"int4 weights and weights in blocks need iOS18, the deployment target is {ctx.target.name}",
            "Raise the deployment target to iOS18, or take int8-weights.",
        )
    if not blocks:
        scale, zero, axis = _parameters(ctx, node, data.ndim, data.dtype)
        return Weight(data, scale, zero, axis, palette)
    scales, zeros = ctx.constant(node, 1), ctx.constant(node, 2)
    assert scales is not None  # the operator's definition requires it
    if any(size % count for size, count in zip(data.shape, scales.shape, strict=True)):
        raise Unsupported(f"blocks of {blocks} do not divide its shape {data.shape}", "Choose a block size that does.")
    return Weight(data, scales.astype(np.float32), np.zeros_like(scales, data.dtype) if zeros is None else zeros)


def _parameters(
    ctx: Context, node: ir.Node, rank: int, dtype: np.dtype[np.generic] | None = None
) -> tuple[Array, Array, int | None]:
    """Scale (float32), zero point (of the quantized type) and axis; vectors of length one become scalars."""
    if int_attr(node, "block_size", 0):
        raise Unsupported("block quantization is not lowered", "Quantize per tensor or per channel.")
    scale = ctx.constant(node, 1)
    assert scale is not None  # the operator's definition requires it
    zero = ctx.constant(node, 2)
    if zero is None:
        zero = np.zeros_like(scale, dtype=dtype or np.uint8)
    if scale.ndim > 1:
        raise Unsupported(f"its scale has rank {scale.ndim}")
    if scale.size == 1:
        return scale.astype(np.float32).reshape(()), zero.reshape(()), None
    return scale.astype(np.float32), zero, int_attr(node, "axis", 1) % rank


def _unwrap(array: Array) -> Array | np.generic:
    """MIL wants a rank-0 parameter as a numpy scalar."""
    return array[()] if array.ndim == 0 else array


def _require_bytes(ctx: Context, zero: Array) -> None:
    if zero.dtype not in (np.int8, np.uint8):
        raise Unsupported(f"Core ML quantizes to int8 and uint8, not {zero.dtype}", "Use 8-bit activations.")
    if ctx.target.version < 17:
        raise Unsupported(
            f"quantized activations need iOS17, the deployment target is {ctx.target.name}",
            "Raise the deployment target to iOS17, or build fp16 for this one.",
        )
