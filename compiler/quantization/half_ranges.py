"""Which nodes float16 loses, by what calibration data shows: overflow, underflow, and cancellation. Others follow their constants.

For every float32 value x the data gives the energy of x and the energy of what rounding to float16 does to it. A value that
float16 cannot hold (beyond 65504), or whose rounding noise comes within LEAST_DB of it (most of it below 6.1e-5, where float16
gets coarser), is computed in float32. So is a difference of near equals: the rounding noise of its operands, 2**-11 / sqrt(3) of
them at most (IEEE 754 binary16), comes within LEAST_DB of the result. What a logarithm is taken of matters in proportion: small
values count as much there as large ones, so whatever leads to it is computed in float32 where more than SMALL_SHARE of its
values lie below 6.1e-5; the same holds in front of a division (half_cancelling.py).

What an operator computes inside is looked at as well where squares and sums may leave the range that its operands and results keep
(a norm, a variance): the operators of OPENED are taken apart for the look, and the whole operator is float32 if a part of it
is lost.
Bodies of loops and branches are float32 as they are (exporters/coreml/lowering/control.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.calibration.collect import GROUP_BYTES, tap_groups
from compiler.calibration.dataset import Dataset
from compiler.decompose.settle import decompose
from compiler.hub import KEEP_FLOAT32
from compiler.hub_session import open_hub
from compiler.quantization.half_cancelling import LEAST_DB, OPERAND_NOISE, feeding, leading_to_poles, lost_shares
from runtimes.session import Array

FLOAT16_MAX = 65504.0
SMALLEST_NORMAL = 2.0**-14
SMALL_SHARE = 0.01
SAMPLES = 64  # figures of energy settle fast; every pass costs one run of the model
_CANCELS = "its operands nearly cancel"
_CANCELLING = frozenset({"Add", "Sub", "Sum", "ReduceSum", "ReduceMean"})
OPENED = frozenset(
    {"LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization", "LpNormalization"}
) | {"MeanVarianceNormalization", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"}


@dataclass(slots=True)
class _Seen:
    """Sums over all elements: of x**2, of (float16(x) - x)**2; the largest |x|; how many lie below float16's normal numbers."""

    energy: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    small: int = 0
    nonzero: int = 0

    def update(self, values: Array) -> None:
        wide = values.astype(np.float64).ravel()
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16).astype(np.float64).ravel()
        self.small += int(((wide != 0) & (np.abs(wide) < SMALLEST_NORMAL)).sum())
        self.nonzero += int((wide != 0).sum())
        self.largest = max(self.largest, float(np.abs(wide).max(initial=0.0)))
        self.energy += float(wide @ wide)
        error = np.where(np.isfinite(rounded), rounded - wide, 0.0)
        self.noise += float(error @ error)

    @property
    def db(self) -> float:
        return _db(self.energy, self.noise)


def mark_float32(model: ir.Model, data: Dataset) -> tuple[ir.Model, dict[str, str]]:
    """A copy whose nodes that float16 would lose carry KEEP_FLOAT32 in their metadata, and the reasons by node name.

    Args:
        model: a float hub.
        data: typical inputs; the first SAMPLES are used.
    """
    reasons = _reasons(model, data.take(SAMPLES))
    marked = model.clone()
    for node in marked.graph:
        if str(node.name) in reasons:
            node.metadata_props[KEEP_FLOAT32] = reasons[str(node.name)]
    return marked, reasons


def _reasons(model: ir.Model, data: Dataset) -> dict[str, str]:
    opened, outer = _opened(model)
    seen = _observe(opened, data)
    poles = leading_to_poles(opened)
    lost = lost_shares(opened, data, poles)
    small = _leading_to_logarithms(opened) | poles
    found: dict[str, str] = {}
    for node in opened.graph:
        reason = (
            _reason(node, seen) or _lost(lost.get(str(node.name), 0.0)) or (_small(node, seen) if node in small else "")
        )
        if reason:
            found[str(node.name)] = reason
        if _CANCELS in reason:
            for one in feeding(node):
                found.setdefault(str(one.name), f"it makes up operands of {node.name!r} that nearly cancel")
    reasons: dict[str, str] = {}
    for name, reason in found.items():
        reasons.setdefault(outer.get(name, name), f"inside it, {reason}" if name in outer else reason)
    return reasons


def _opened(model: ir.Model) -> tuple[ir.Model, dict[str, str]]:
    """A copy with the operators of OPENED taken apart, and by the name of a part the name of its operator."""
    opened = model.clone()
    names = {str(node.name) for node in model.graph if node.op_type in OPENED}
    names -= decompose(opened, names)
    own = {str(node.name) for node in model.graph}
    parts = [str(node.name) for node in opened.graph if str(node.name) not in own]
    return opened, {part: max((n for n in names if part.startswith(f"{n}/")), key=len) for part in parts}


def _observe(model: ir.Model, data: Dataset) -> dict[str, _Seen]:
    seen = {str(v.name): _Seen() for v in model.graph.inputs if v.dtype == ir.DataType.FLOAT}
    for name, array in data.feeds.items():
        if name in seen:
            seen[name].update(array[:])  # SAMPLES are few
    for group in tap_groups(model, None, GROUP_BYTES):
        seen.update((name, _Seen()) for name in group)
        with open_hub(model, taps=group) as session:
            for feeds in data.batches():
                answers = session.run(feeds)
                for name in group:
                    seen[name].update(answers[name])
    return seen


def _reason(node: ir.Node, seen: dict[str, _Seen]) -> str:
    for value in (*node.outputs, *node.inputs):
        found = seen.get(value.name or "") if value is not None else None
        if found is not None and found.largest > FLOAT16_MAX:
            return f"{value.name!r} reaches {found.largest:.3g}, float16 ends at {FLOAT16_MAX:g}" if value else ""
    output = seen.get(node.outputs[0].name or "")
    if output is None or output.energy == 0:
        return ""
    if output.db < LEAST_DB:
        return f"its values are so small that float16 keeps {output.db:.0f} dB of them"
    if node.op_type in _CANCELLING:
        noise = sum(OPERAND_NOISE**2 * energy for energy in _energies(node, seen))
        if _db(output.energy, noise) < LEAST_DB:
            return f"{_CANCELS}: float16 keeps {_db(output.energy, noise):.0f} dB"
    return ""


def _lost(share: float) -> str:
    if share <= SMALL_SHARE:
        return ""
    return f"{_CANCELS} in {share:.0%} of its elements, and a division follows"


def _leading_to_logarithms(model: ir.Model) -> set[ir.Node]:
    found: set[ir.Node] = set()
    todo = [node for node in model.graph if node.op_type in ("Log", "LogSoftmax")]
    while todo:
        for value in todo.pop().inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in found:
                found.add(producer)
                todo.append(producer)
    return found


def _small(node: ir.Node, seen: dict[str, _Seen]) -> str:
    output = seen.get(node.outputs[0].name or "")
    if output is None or output.small <= SMALL_SHARE * output.nonzero:
        return ""
    share = output.small / output.nonzero
    return (
        f"{share:.0%} of its values lie below 6.1e-5, where float16 gets coarse, and a logarithm or a division follows"
    )


def _energies(node: ir.Node, seen: dict[str, _Seen]) -> Iterator[float]:
    """The operands' energies, as if each had as many elements as the output."""
    size = _elements(node.outputs[0])
    for value in node.inputs:
        found = seen.get(value.name or "") if value is not None else None
        if found is not None and value is not None:
            yield found.energy * size / max(_elements(value), 1)


def _elements(value: ir.Value) -> int:
    return math.prod(d for d in (value.shape or ()) if isinstance(d, int))


def _db(energy: float, noise: float) -> float:
    return 10 * math.log10(max(energy, 1e-300) / max(noise, 1e-300))
