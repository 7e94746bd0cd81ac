"""AdaRound: whether each weight is rounded up or down is learnt, block by block, from what the block should compute.

    w~ = s * clip(floor(w / s) + h(v), low, high),  h(v) = clip(sigmoid(v) * (zeta - gamma) + gamma, 0, 1)
    loss = E|f(x) - f~(x~)|^2 / N + lambda * mean(1 - |2 h(v) - 1|^beta),  beta falling from 20 to 2

N is the same error with all weights rounded to nearest, so that lambda means the same everywhere.

Source: M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020), equations 22 to 25. As in its
section 4.3 the inputs x~ are those of the quantized model with all earlier blocks rounded already. As in Y. Li et al., "BRECQ"
(2021), what is held against the float model is the end of a block of layers, not every layer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from compiler.pruning.unfold import window_of
from compiler.quantization.rescue.bias import current_bias, with_corrected
from compiler.quantization.rescue.blocks import Block, block_data, find_blocks
from compiler.quantization.rescue.candidate import Bench, Candidate
from compiler.quantization.rescue.wide import multiplications
from compiler.quantization.spec import QParams
from compiler.quantization.structure import constant_of, name_of
from runtimes.session import Array

if TYPE_CHECKING:
    import torch

LOGGER = logging.getLogger(__name__)

ZETA, GAMMA = 1.1, -0.1  # equation 23
LAMBDA = 0.1  # see N
BETA: Final = (20.0, 2.0)
WARM_UP = 0.2  # of the steps, in which nothing is pushed to 0 or 1 yet
BATCH = 16
RATE = 0.1  # ten times the paper's, for a fiftieth of its steps
STEPS = (60, 300)
WORK = 1e10  # multiply-accumulates that a block may take, forward, all steps together


def round_adaptively(start: Candidate, bench: Bench) -> Iterator[tuple[str, Candidate]]:
    """Yield ``start`` with weights rounded block by block, then that with corrected biases; nothing without torch."""
    try:
        import torch  # noqa: F401
    except ImportError:
        LOGGER.info("AdaRound is left out: torch is not installed")
        return
    blocks = find_blocks(start, start.quantized().model)
    made = start
    for block in blocks:
        inputs, targets = block_data(start.reference, made.quantized().model, block, bench.train)
        made = replace(made, overrides={**made.overrides, **rounded(made, block, inputs, targets)})
    if not blocks:
        return
    detail = f"{sum(len(block.layers) for block in blocks)} layers in {len(blocks)} blocks"
    yield from with_corrected(detail, made, bench)


@dataclass(frozen=True, slots=True)
class _Rounding:
    """What is learnt of one layer. ``floor``, ``v``: of the weight's shape; ``scale`` broadcasts to it."""

    floor: torch.Tensor
    v: torch.Tensor
    scale: torch.Tensor
    low: int
    high: int

    def share(self) -> torch.Tensor:
        """h(v)."""
        import torch

        return torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0, 1)

    def weight(self, share: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.clamp(self.floor + share, self.low, self.high) * self.scale

    def codes(self) -> Array:
        hard = (self.share() >= 0.5).to(self.floor.dtype)
        codes: Array = (self.floor + hard).clamp(self.low, self.high).detach().numpy()
        return codes


def rounded(one: Candidate, block: Block, inputs: Array, targets: Array) -> dict[tuple[str, int], Array]:
    """The block's weights after learning, as overrides: float32 values that lie on their quantization's grid."""
    import torch

    generator = torch.Generator().manual_seed(0)
    learnt = {name_of(node): _begin(one, node) for node in block.layers}
    optimizer = torch.optim.Adam([r.v for r in learnt.values()], RATE)
    x, wanted = torch.from_numpy(inputs.copy()), torch.from_numpy(targets.copy())
    biases = {n: torch.from_numpy(_bias(one, node)) for node in block.layers if (n := name_of(node))}
    steps, noise = _steps(block), _noise_to_nearest(one, block, learnt, biases, x, wanted)
    for step in range(steps):
        chosen = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator)
        shares = {name: r.share() for name, r in learnt.items()}
        got = run_block(block, x[chosen], {n: r.weight(shares[n]) for n, r in learnt.items()}, biases, one)
        loss = ((got - wanted[chosen]) ** 2).mean() / noise
        progress = step / steps
        if progress >= WARM_UP:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - (progress - WARM_UP) / (1 - WARM_UP))
            loss = loss + LAMBDA * sum((1 - (2 * h - 1).abs() ** beta).mean() for h in shares.values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {(name, 1): _restored(one, name, r) for name, r in learnt.items()}


def _noise_to_nearest(
    one: Candidate,
    block: Block,
    learnt: Mapping[str, _Rounding],
    biases: Mapping[str, torch.Tensor],
    x: torch.Tensor,
    wanted: torch.Tensor,
) -> float:
    import torch

    with torch.no_grad():
        nearest = {n: r.weight((r.share() >= 0.5).to(r.floor.dtype)) for n, r in learnt.items()}
        got = run_block(block, x[:BATCH], nearest, biases, one)
        return float(((got - wanted[:BATCH]) ** 2).mean()) or 1.0


def _steps(block: Block) -> int:
    """As many as WORK allows, by count and not by the clock, so that the same input gives the same weights."""
    work = BATCH * sum(multiplications(node) for node in block.nodes)
    return int(np.clip(WORK / max(work, 1), *STEPS))


def _begin(one: Candidate, node: ir.Node) -> _Rounding:
    """h(v) begins at the weight's own place between two codes, so nothing is rounded at first.

    Where another rung has rounded already, the choice is between its code and the one beyond the weight, and begins half way from
    the weight to that code.
    """
    import torch

    name = name_of(node)
    weight, params = constant_of(node.inputs[1]), one.spec.constant(name, 1)
    assert weight is not None and params is not None
    scale = torch.from_numpy(np.array(params.steps(weight.shape), np.float32))
    ratio = torch.from_numpy(np.array(weight, np.float32)) / scale
    floor = ratio.floor()
    begin = ratio - floor
    if (name, 1) in one.overrides:
        code = torch.round(torch.from_numpy(np.array(one.overrides[name, 1], np.float32)) / scale)
        floor = torch.where(code > ratio, code - 1, code)
        begin = ((ratio - floor).clamp(0, 1) + (code - floor)) / 2
    inside = torch.clamp((begin - GAMMA) / (ZETA - GAMMA), 1e-4, 1 - 1e-4)
    return _Rounding(floor, torch.logit(inside).requires_grad_(), scale, params.qmin, params.qmax)


def _restored(one: Candidate, name: str, learnt: _Rounding) -> Array:
    params = one.spec.constant(name, 1)
    assert params is not None
    return params.dequantize(learnt.codes().astype(np.int64))


def _bias(one: Candidate, node: ir.Node) -> Array:
    weight = constant_of(node.inputs[1])
    assert weight is not None
    transposed = node.op_type == "Gemm" and not _attribute(node, "transB", 0)
    return current_bias(one, node, weight.shape[1 if transposed else 0]).astype(np.float32)


def run_block(
    block: Block,
    x: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    biases: Mapping[str, torch.Tensor],
    one: Candidate,
) -> torch.Tensor:
    """The block in torch; values inside are rounded as the specification says, with gradients passed straight through."""
    for node in block.nodes:
        name = name_of(node)
        x = _layer(node, x, weights[name], biases[name]) if name in weights else _activation(node, x)
        params = one.spec.activations.get(str(node.outputs[0].name))
        if params is not None and node is not block.nodes[-1]:
            x = x + (_fake(x, params) - x).detach()
    return x


def _fake(x: torch.Tensor, params: QParams) -> torch.Tensor:
    import torch

    scale = float(params.scale[0])
    codes = torch.clamp(torch.round(x / scale) + params.zero_point, params.qmin, params.qmax)
    return (codes - params.zero_point) * scale


def _layer(node: ir.Node, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    if node.op_type == "Gemm":
        return functional.linear(x, weight if _attribute(node, "transB", 0) else weight.T, bias)
    window = window_of(node, tuple(weight.shape[2:]), tuple(x.shape[2:]))
    padded = functional.pad(x, [size for pair in reversed(window.pads) for size in pair])
    convolve: Any = functional.conv2d if weight.ndim == 4 else functional.conv1d
    result: torch.Tensor = convolve(
        padded, weight, bias, window.strides, 0, window.dilations, _attribute(node, "group", 1)
    )
    return result


def _activation(node: ir.Node, x: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn import functional

    if node.op_type == "Relu":
        return torch.relu(x)
    if node.op_type == "Clip":
        limits = [constant_of(v) for v in (*node.inputs[1:], None, None)][:2]
        return torch.clamp(x, *(None if limit is None else float(limit.reshape(())) for limit in limits))
    if node.op_type == "LeakyRelu":
        return functional.leaky_relu(x, _attribute(node, "alpha", 0.01))
    if node.op_type == "HardSwish":  # ONNX: x * max(0, min(1, x / 6 + 0.5))
        return functional.hardswish(x)
    if node.op_type == "HardSigmoid":
        return torch.clamp(_attribute(node, "alpha", 0.2) * x + _attribute(node, "beta", 0.5), 0, 1)
    return torch.sigmoid(x) if node.op_type == "Sigmoid" else torch.tanh(x)


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default
