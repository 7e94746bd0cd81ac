"""What int8 did to a model, activation by activation: quantization noise, saturation, float islands, and the CPU it ran on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from compiler.calibration.collect import GROUP_BYTES, tap_groups
from compiler.calibration.dataset import Dataset
from compiler.hub_session import open_hub
from compiler.quantization.engine import Quantized
from compiler.quantization.spec import QParams
from compiler.quantization.structure import name_of, value_name
from runtimes.session import Array

# Flags whose presence means that int8 products are accumulated without intermediate saturation (x86 VNNI, ARM dot product).
DOT_PRODUCT_FLAGS: Final = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")


@dataclass(frozen=True, slots=True)
class LayerEvidence:
    """One activation. ``sqnr_db`` is infinite where nothing was lost; ``saturated_share`` of float values lie outside the range."""

    value: str
    node: str
    op_type: str
    sqnr_db: float
    saturated_share: float


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
    tallies = {name: _Tally(params) for name, params in spec.activations.items()}
    for group in tap_groups(model, spec.activations, GROUP_BYTES):
        with open_hub(model, taps=group) as plain, open_hub(quantized.model, taps=group) as coded:
            for feeds in few.batches():
                want, have = plain.run(feeds), coded.run(feeds)
                for name in group:
                    tallies[name].add(want[name], have[name])
    producers = {value_name(o): node for node in model.graph for o in node.outputs if o.name}
    layers = tuple(
        LayerEvidence(name, name_of(producers[name]), producers[name].op_type, tally.sqnr_db, tally.saturated_share)
        for name, tally in tallies.items()
        if name in producers
    )
    islands = {name: decision.reason for name, decision in spec.float_nodes.items()}
    return Evidence(layers, islands, few.count, cpu_flags())


@dataclass(slots=True)
class _Tally:
    """Sums over a stream: signal and noise power, values outside the range."""

    params: QParams
    signal: float = 0.0
    noise: float = 0.0
    outside: int = 0
    total: int = field(default=0)

    def add(self, want: Array, have: Array) -> None:
        wide = want.astype(np.float64)
        self.signal += float((wide**2).sum())
        self.noise += float(((wide - have) ** 2).sum())
        half = float(self.params.scale[0]) / 2  # rounding still reaches the last code from half a step beyond
        self.outside += int(((wide < self.params.low - half) | (wide > self.params.high + half)).sum())
        self.total += wide.size

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
