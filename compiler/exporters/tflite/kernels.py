"""KERNELS: what LiteRT's kernels demand of quantized operators, as data.

Sources, per entry: the kernel's Prepare in LiteRT's tflite/kernels, and
  [spec]  LiteRT 8-bit quantization specification, ai.google.dev/edge/litert/models/quantization_spec
``enforced`` tells the demands that Prepare checks, so that a file which breaks them is refused, from those of the specification
alone; tests/compiler/exporters/tflite/test_kernel_rules.py holds both against the interpreter, and the planner's own table
(compiler/quantization/rules.py) against this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from compiler.exporters.tflite.tensors import QuantParams, per_tensor


@dataclass(frozen=True, slots=True)
class Kernel:
    """One ONNX operator's builtin.

    Args:
        source: file and function in tflite/kernels that checks or computes.
        wide: whether it takes int16 activations.
        same_scale: the output has the parameters of the input.
        fixed: the output's parameters in int8; ``fixed_wide`` in int16.
        enforced: whether Prepare refuses other parameters than ``same_scale`` or ``fixed`` say.
    """

    code: str
    source: str
    wide: bool = True
    same_scale: bool = False
    fixed: QuantParams | None = None
    fixed_wide: QuantParams | None = None
    enforced: bool = False


# [spec]: 1/256 with -128 for values in [0, 1], 1/128 with 0 for [-1, 1]; in int16 1/32768 for both.
UNIT: Final = per_tensor(1 / 256, -128)
SIGNED_UNIT: Final = per_tensor(1 / 128, 0)
FRACTION: Final = per_tensor(1 / 32768, 0, bits=16)


def _moves(code: str, source: str, *, wide: bool = True, enforced: bool = False) -> Kernel:
    return Kernel(code, source, wide=wide, same_scale=True, enforced=enforced)


KERNELS: Final[dict[str, Kernel]] = {
    "Conv": Kernel("CONV_2D", "conv.cc Prepare: int8 or int16 input, int8 filter, zero point 0 in int16"),
    "ConvTranspose": Kernel("TRANSPOSE_CONV", "transpose_conv.cc Prepare"),
    "Gemm": Kernel("FULLY_CONNECTED", "fully_connected.cc PrepareImpl"),
    "MatMul": Kernel("BATCH_MATMUL", "batch_matmul.cc Prepare: zero point 0 in int16"),
    "Add": Kernel("ADD", "add.cc Prepare: zero point 0 in int16"),
    "Sub": Kernel("SUB", "sub.cc PrepareGeneralSubOp, PrepareInt16SubOpPOT"),
    "Mul": Kernel("MUL", "mul.cc Prepare: zero point 0 in int16"),
    "Relu": Kernel("RELU", "activations.cc ReluPrepare"),
    "Clip": Kernel("RELU6", "activations.cc ReluPrepare; ReluN1To1 has no int16 form"),
    "LeakyRelu": Kernel("LEAKY_RELU", "activations.cc LeakyReluPrepare"),
    "PRelu": Kernel("PRELU", "activations.cc PreluPrepare"),
    "Elu": Kernel("ELU", "activations.cc EluPrepare: int8 by table, no int16", wide=False),
    "Gelu": Kernel("GELU", "activations.cc GeluPrepare: by table"),
    "HardSwish": Kernel("HARD_SWISH", "activations.cc HardSwishPrepare: no int16; composed of ADD and MUL there"),
    "HardSigmoid": Kernel("ADD", "no kernel: composed of ADD and MUL, see ops/activation.py"),
    "GlobalAveragePool": Kernel("MEAN", "reduce.cc PrepareMeanOrSum"),
    "ReduceMean": Kernel("MEAN", "reduce.cc PrepareMeanOrSum"),
    "ReduceSum": Kernel("SUM", "reduce.cc PrepareMeanOrSum"),
    "Softmax": Kernel("SOFTMAX", "activations.cc SoftmaxPrepare", fixed=UNIT, fixed_wide=FRACTION, enforced=True),
    "Sigmoid": Kernel("LOGISTIC", "activations.cc SigmoidPrepare", fixed=UNIT, fixed_wide=FRACTION, enforced=True),
    # The specification alone: the int8 kernel makes its table for whatever it is given.
    "Tanh": Kernel("TANH", "[spec]; activations.cc TanhPrepare", fixed=SIGNED_UNIT, fixed_wide=FRACTION),
    "MaxPool": _moves("MAX_POOL_2D", "pooling.cc GenericPrepare"),
    "AveragePool": _moves("AVERAGE_POOL_2D", "pooling.cc GenericPrepare, AverageEvalQuantizedInt8"),
    "GlobalMaxPool": _moves("REDUCE_MAX", "reduce.cc PrepareSimple"),
    "ReduceMax": _moves("REDUCE_MAX", "reduce.cc PrepareSimple"),
    "ReduceMin": _moves("REDUCE_MIN", "reduce.cc PrepareSimple"),
    "Resize": _moves("RESIZE_BILINEAR", "resize_bilinear.cc, resize_nearest_neighbor.cc Prepare"),
    "Max": _moves("MAXIMUM", "maximum_minimum.cc: compares codes"),
    "Min": _moves("MINIMUM", "maximum_minimum.cc: compares codes"),
    "Concat": _moves("CONCATENATION", "concatenation.cc Prepare", enforced=True),
    "Reshape": _moves("RESHAPE", "reshape.cc: moves memory"),
    "Flatten": _moves("RESHAPE", "reshape.cc: moves memory"),
    "Squeeze": _moves("RESHAPE", "reshape.cc: moves memory"),
    "Unsqueeze": _moves("RESHAPE", "reshape.cc: moves memory"),
    "Identity": _moves("RESHAPE", "nothing is written"),
    "Dropout": _moves("RESHAPE", "nothing is written"),
    "Transpose": _moves("TRANSPOSE", "transpose.cc Prepare"),
    "Slice": _moves("STRIDED_SLICE", "strided_slice.cc Prepare"),
    "Split": _moves("SPLIT_V", "split_v.cc Prepare"),
    "Pad": _moves("PAD", "pad.cc Prepare"),
    "Gather": _moves("GATHER", "gather.cc Prepare"),
    "Expand": _moves("BROADCAST_TO", "broadcast_to.cc Prepare"),
    "Tile": _moves("TILE", "tile.cc Prepare"),
    "DepthToSpace": _moves("DEPTH_TO_SPACE", "depth_to_space.cc Prepare: no int16", wide=False),
    "SpaceToDepth": _moves("SPACE_TO_DEPTH", "space_to_depth.cc Prepare: no int16", wide=False),
    "QuantizeLinear": Kernel("QUANTIZE", "quantize.cc Prepare: zero point 0 in int16"),
    "DequantizeLinear": Kernel("DEQUANTIZE", "dequantize.cc Prepare"),
}


def takes(op_type: str, bits: int) -> bool:
    """Whether the operator's kernel takes activations of this width; 8 bits are left to the lowering."""
    kernel = KERNELS.get(op_type)
    return bits == 8 or (kernel is not None and kernel.wide)


def prescribed(op_type: str, quant: QuantParams) -> QuantParams:
    """The output's parameters where the hub wants ``quant``: the kernel's own if it has any."""
    kernel = KERNELS.get(op_type)
    fixed = None if kernel is None else kernel.fixed if quant.bits == 8 else kernel.fixed_wide
    return fixed or quant
