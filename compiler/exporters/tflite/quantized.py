"""What the quantized hub says about a tensor: its integers if it is constant, its parameters if it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from compiler.exporters.tflite.tensors import Array, QuantParams, per_tensor

if TYPE_CHECKING:
    import onnx_ir as ir


class Constants(Protocol):
    """Who knows which values are constant."""

    def constant(self, value: ir.Value | None) -> Array | None: ...


@dataclass(frozen=True, slots=True)
class QuantizedConstant:
    """An int8 weight or int32 bias of the quantized hub, in the hub's axis order."""

    data: Array
    quant: QuantParams

    def dequantized(self) -> Array:
        scale = self.spread(np.asarray(self.quant.scale, np.float32))
        zero = self.spread(np.asarray(self.quant.zero_point, np.int32))
        moved = self.data.astype(np.int32) - zero if zero.any() else self.data
        real: Array = moved.astype(np.float32)
        real *= scale
        return real

    def spread(self, values: Array) -> Array:
        """Scales or zero points in a shape that broadcasts with the data."""
        axis, shape = self.quant.axis, [1] * self.data.ndim
        if self.quant.per_tensor:
            return values
        if self.quant.block:
            rows = values.reshape(self.block_shape)
            return np.repeat(rows, self.quant.block, axis).take(range(self.data.shape[axis]), axis)
        shape[axis] = -1
        return values.reshape(shape)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """The data's shape with the axis of the blocks counted in blocks, the last of which may be short."""
        axis, size = self.quant.axis, self.quant.block
        return tuple(-(-n // size) if a == axis else n for a, n in enumerate(self.data.shape))


def activation_quant(constants: Constants, node: ir.Node) -> QuantParams | None:
    """Parameters of a QuantizeLinear on an activation: per tensor, int8 (uint8 is moved by 128) or int16.

    None for others.
    """
    scale = constants.constant(node.inputs[1])
    zero = constants.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or scale.size != 1 or (len(node.inputs) > 2 and zero is None):
        return None
    if zero is None:
        zero = np.zeros((), np.uint8)  # ONNX: without a zero point the output is uint8
    if zero.dtype in (np.int16, np.uint16):
        return wide_params(float(scale.reshape(())), int(zero.reshape(())), zero.dtype)
    if zero.dtype not in (np.int8, np.uint8):
        return None
    # int8 with zero point z and uint8 with z + 128 are the same numbers.
    moved = int(zero.reshape(())) - (128 if zero.dtype == np.uint8 else 0)
    return per_tensor(float(scale.reshape(())), moved)


def wide_params(scale: float, zero: int, dtype: np.dtype[Any]) -> QuantParams:
    """int16 parameters without a zero point, which no 16-bit kernel has, that hold the range of the ones given.

    With zero point 0 they are the same. Else the scale grows by at most 65535 / 32767, so that what is stored lies within a
    step of what the hub says.
    """
    limits = np.iinfo(dtype)
    reach = max(zero - int(limits.min), int(limits.max) - zero)
    same = dtype == np.int16 and zero == 0
    return per_tensor(scale if same else scale * reach / 32767, 0, bits=16)
