"""The operator table of int8 quantization: data, not code, so that what the targets demand can be read in one place.

A rule is the intersection of what the targets allow. Sources:
  [spec]  LiteRT 8-bit quantization specification, ai.google.dev/edge/litert/models/quantization_spec
  [aeq]   ai-edge-quantizer, algorithms/uniform_quantize/common_quantize.py: materialize_* (constraints per TFLite operator)
  [act]   LiteRT kernels, tensorflow/lite/kernels/activations.cc (fixed output parameters are checked in Prepare)
  [ort]   onnxruntime, core/optimizer/qdq_transformer/selectors_actions (which QDQ groups become integer kernels)

An operator without a rule stays in float, and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    WEIGHTED = "weighted"  # int8 weight, int32 bias, int32 accumulation
    FREE = "free"  # every tensor has its own scale and zero point
    SAME_SCALE = "same-scale"  # data inputs and outputs share one scale and zero point
    FIXED = "fixed"  # the kernel prescribes the output's scale and zero point


@dataclass(frozen=True, slots=True)
class Rule:
    """How one operator type is quantized.

    Args:
        kind: see Kind.
        source: where the targets demand it.
        data_inputs: indices of the inputs that carry data; None means all of them.
        fuses_activation: a following Relu or Clip(0, 6) belongs to the node, so no pair stands between the two.
        moves_data: no arithmetic; not worth a quantization of its own between float nodes.
        fixed: (scale, zero point) of the output.
    """

    kind: Kind
    source: str
    data_inputs: tuple[int, ...] | None = None
    fuses_activation: bool = False
    moves_data: bool = False
    fixed: tuple[float, int] | None = None


def _moves(source: str, data_inputs: tuple[int, ...] | None = (0,)) -> Rule:
    return Rule(Kind.SAME_SCALE, source, data_inputs=data_inputs, moves_data=True)


RULES: Final[dict[str, Rule]] = {
    # int8 x int8 -> int32. Weights symmetric and narrow, per output channel; bias scale = s_in * s_w. [spec]
    "Conv": Rule(
        Kind.WEIGHTED, "[spec] CONV_2D, DEPTHWISE_CONV_2D; [ort] QLinearConv", (0, 1, 2), fuses_activation=True
    ),
    "ConvTranspose": Rule(Kind.WEIGHTED, "[aeq] materialize_conv2d_transpose", (0, 1, 2)),
    "Gemm": Rule(Kind.WEIGHTED, "[spec] FULLY_CONNECTED; [ort] QGemm", (0, 1, 2), fuses_activation=True),
    "MatMul": Rule(
        Kind.WEIGHTED, "[spec] FULLY_CONNECTED; [aeq] materialize_batch_matmul; [ort] QLinearMatMul", (0, 1), True
    ),
    # Element-wise, each side with its own parameters.
    "Add": Rule(Kind.FREE, "[spec] ADD; [ort] QLinearAdd", fuses_activation=True),
    "Sub": Rule(Kind.FREE, "[aeq] materialize_sub"),
    "Mul": Rule(Kind.FREE, "[spec] MUL; [ort] QLinearMul"),
    "Relu": Rule(Kind.FREE, "[act] ReluPrepare requantizes"),
    "Clip": Rule(Kind.FREE, "[act] Relu6 and ReluN1To1 requantize", (0,)),
    "LeakyRelu": Rule(Kind.FREE, "[act] LeakyReluPrepare requantizes; [ort] QLinearLeakyRelu"),
    "PRelu": Rule(Kind.FREE, "[act] PreluPrepare requantizes"),
    "Elu": Rule(Kind.FREE, "[act] table look-up"),
    "Gelu": Rule(Kind.FREE, "[aeq] materialize_gelu; table look-up"),
    "HardSwish": Rule(Kind.FREE, "[act] HardSwishPrepare requantizes"),
    "HardSigmoid": Rule(Kind.FREE, "decomposed or computed in float between int8 tensors by every target"),
    # Means keep their own output range: MEAN requantizes, unlike AVERAGE_POOL_2D.
    "GlobalAveragePool": Rule(Kind.FREE, "[spec] MEAN; [aeq] materialize_mean; [ort] QLinearGlobalAveragePool", (0,)),
    "ReduceMean": Rule(Kind.FREE, "[spec] MEAN; [aeq] materialize_mean", (0,)),
    "ReduceSum": Rule(Kind.FREE, "[aeq] materialize_sum", (0,)),
    # Outputs whose range is known and prescribed.
    "Softmax": Rule(Kind.FIXED, "[spec] SOFTMAX; [aeq] materialize_softmax_and_logistic", fixed=(1 / 256, -128)),
    "Sigmoid": Rule(Kind.FIXED, "[spec] LOGISTIC; [aeq] materialize_softmax_and_logistic", fixed=(1 / 256, -128)),
    "Tanh": Rule(Kind.FIXED, "[spec] TANH; [aeq] materialize_tanh", fixed=(1 / 128, 0)),
    # Arithmetic within one scale.
    "MaxPool": Rule(Kind.SAME_SCALE, "[spec] MAX_POOL_2D", (0,)),
    "AveragePool": Rule(Kind.SAME_SCALE, "[spec] AVERAGE_POOL_2D; [aeq] materialize_average_pool_2d", (0,)),
    "GlobalMaxPool": Rule(Kind.SAME_SCALE, "[spec] MAX_POOL_2D", (0,)),
    "Resize": Rule(Kind.SAME_SCALE, "[spec] RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR", (0,)),
    "Max": Rule(Kind.SAME_SCALE, "[spec] MAXIMUM"),
    "Min": Rule(Kind.SAME_SCALE, "[spec] MINIMUM"),
    "ReduceMax": Rule(Kind.SAME_SCALE, "[aeq] materialize_reduce_min: same scale", (0,)),
    "ReduceMin": Rule(Kind.SAME_SCALE, "[aeq] materialize_reduce_min: same scale", (0,)),
    # Data movement.
    "Concat": _moves("[spec] CONCATENATION", None),
    "Reshape": _moves("[spec] RESHAPE"),
    "Flatten": _moves("[spec] RESHAPE"),
    "Squeeze": _moves("[spec] RESHAPE"),
    "Unsqueeze": _moves("[spec] RESHAPE"),
    "Identity": _moves("no operation"),
    "Transpose": _moves("[spec] TRANSPOSE"),
    "Slice": _moves("[spec] SLICE"),
    "Split": _moves("[spec] SPLIT"),
    "Pad": _moves("[spec] PAD, PADV2"),
    "Gather": _moves("[spec] GATHER"),
    "Expand": _moves("[aeq] op_architecture_tests/broadcast_to"),
    "Tile": _moves("data movement"),
    "DepthToSpace": _moves("data movement"),
    "SpaceToDepth": _moves("[aeq] op_architecture_tests/space_to_depth"),
}

# With int16 activations: what [act], depth_to_space.cc and space_to_depth.cc refuse, and the one scale of all fixed outputs.
NO_INT16: Final = frozenset({"Elu", "DepthToSpace", "SpaceToDepth"})
FIXED_INT16: Final = (1 / 32768, 0)

# Reasons that help more than "no rule".
WHY_FLOAT: Final[dict[str, str]] = {
    "BatchNormalization": "fold it into the convolution before it (a clean-up pass does) and it disappears",
    "Div": "no target has an int8 division; multiply by the reciprocal where the divisor is constant",
    "LSTM": "recurrent state accumulates rounding errors; static int8 is not offered",
    "GRU": "recurrent state accumulates rounding errors; static int8 is not offered",
    "LayerNormalization": "needs a variance and a square root, which int8 cannot carry",
    "InstanceNormalization": "needs a variance and a square root, which int8 cannot carry",
}
