"""What int8 did to a model, activation by activation: quantization noise, saturation, float islands, and the CPU it ran on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration.collect import GROUP_BYTES, tap_groups
from compiler.calibration.dataset import Dataset
from compiler.calibration.observers import Range
from compiler.hub_session import open_hub
from compiler.quantization.engine import Quantized
from compiler.quantization.spec import QParams
from compiler.quantization.structure import name_of, value_name
from runtimes.session import Array

HISTOGRAM_BINS: Final = 32
# Flags whose presence means that int8 products are accumulated without intermediate saturation (x86 VNNI, ARM dot product).
DOT_PRODUCT_FLAGS: Final = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")


@dataclass(frozen=True, slots=True)
class LayerEvidence:
    """One activation. ``sqnr_db`` is infinite where nothing was lost; ``saturated_share`` of float values lie outside the range.

    ``low`` to ``high``: what its codes express. ``counts``: how many float values fell into each of HISTOGRAM_BINS equal bins
    between ``observed_low`` and ``observed_high``, what calibration saw; values of these samples beyond count at the ends.
    """

    value: str
    node: str
    op_type: str
    sqnr_db: float
    saturated_share: float
    dtype: str = "int8"
    low: float = 0.0
    high: float = 0.0
    observed_low: float = 0.0
    observed_high: float = 0.0
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """``layers`` in graph order. ``islands``: float node -> reason. ``cpu_flags``: dot-product flags found on this machine."""

    layers: tuple[LayerEvidence, ...]
    islands: dict[str, str]
    samples: int
    cpu_flags: tuple[str, ...]

    @property
    def worst(self) -> LayerEvidence | None:
        return min(self.layers, key=lambda layer: layer.sqnr_db, default=None)

    def first_below(self, floor_db: float) -> LayerEvidence | None:
        """The first activation in graph order with less than ``floor_db`` of signal to noise: where it begins to go wrong."""
        return next((layer for layer in self.layers if layer.sqnr_db < floor_db), None)

    def saturated_above(self, share: float) -> tuple[LayerEvidence, ...]:
        """Activations of which more than ``share`` of the float values cannot be expressed."""
        return tuple(layer for layer in self.layers if layer.saturated_share > share)

    @property
    def cpu_note(self) -> str | None:
        """A warning where figures measured here may not be a board's."""
        if self.cpu_flags:
            return None
        return (
            "this CPU has no int8 dot product (VNNI or ARM asimddp): onnxruntime takes exact but slower kernels here "
            "(session.x64quantprecision), so int8 latency measured here is not the board's"
        )


def gather_evidence(model: ir.Model, quantized: Quantized, dataset: Dataset, *, samples: int = 16) -> Evidence:
    """Run both hubs over the first ``samples`` samples and compare every quantized activation.

    Args:
        model: the float hub that was quantized.
        quantized: the result.
    """
    spec, few = quantized.spec, dataset.take(samples)
    seen = quantized.calibration.ranges
    tallies = {name: _Tally(params, seen.get(name)) for name, params in spec.activations.items()}
    for group in tap_groups(model, spec.activations, GROUP_BYTES):
        with open_hub(model, taps=group) as plain, open_hub(quantized.model, taps=group) as coded:
            for feeds in few.batches():
                want, have = plain.run(feeds), coded.run(feeds)
                for name in group:
                    tallies[name].add(want[name], have[name])
    producers = {value_name(o): node for node in model.graph for o in node.outputs if o.name}
    layers = tuple(tally.evidence(name, producers[name]) for name, tally in tallies.items() if name in producers)
    islands = {name: decision.reason for name, decision in spec.float_nodes.items()}
    return Evidence(layers, islands, few.count, cpu_flags())


@dataclass(slots=True)
class _Tally:
    """Sums over a stream: signal and noise power, values outside the range, a coarse histogram."""

    params: QParams
    seen: Range | None
    signal: float = 0.0
    noise: float = 0.0
    outside: int = 0
    total: int = field(default=0)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(HISTOGRAM_BINS, np.int64))

    @property
    def ends(self) -> tuple[float, float]:
        """Between which values are counted."""
        if self.seen is None:
            return self.params.low, self.params.high
        return self.seen.observed_low, self.seen.observed_high

    def evidence(self, name: str, node: ir.Node) -> LayerEvidence:
        kind, (low, high) = self.params.dtype, (self.params.low, self.params.high)
        figures = (self.sqnr_db, self.saturated_share, kind, low, high, *self.ends)
        return LayerEvidence(name, name_of(node), node.op_type, *figures, tuple(self.counts.tolist()))

    def add(self, want: Array, have: Array) -> None:
        wide = want.astype(np.float64)
        self.signal += float((wide**2).sum())
        self.noise += float(((wide - have) ** 2).sum())
        half = float(self.params.scale[0]) / 2  # rounding still reaches the last code from half a step beyond
        self.outside += int(((wide < self.params.low - half) | (wide > self.params.high + half)).sum())
        self.total += wide.size
        low, high = self.ends
        if high > low:
            self.counts += np.histogram(np.clip(wide, low, high), HISTOGRAM_BINS, (low, high))[0]

    @property
    def sqnr_db(self) -> float:
        if self.noise == 0.0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def saturated_share(self) -> float:
        return self.outside / self.total if self.total else 0.0


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """The DOT_PRODUCT_FLAGS of this CPU; empty where they cannot be read."""
    try:
        words = set(cpuinfo.read_text("utf-8").split())
    except OSError:
        return ()
    return tuple(flag for flag in DOT_PRODUCT_FLAGS if flag in words)
