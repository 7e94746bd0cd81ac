"""An artifact of flexible sizes, executed at the ends of what it takes and held against the hub with free axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.exporters.base import CoreMLInterface
from compiler.exporters.coreml.flexible import end_shapes, free_axes
from compiler.hub_session import open_hub
from compiler.hubfacts import hub_inputs, index_limit
from compiler.verification.metrics import Parity, parity
from profiles.errors import EdgewrightError
from runtimes.isolation import open_isolated
from runtimes.session import Array, TensorSpec

TIMEOUT_S = 600.0


def check_sizes(path: Path, hub: ir.Model, interface: CoreMLInterface) -> tuple[float, str]:
    """Run the artifact and the hub at every listed shape, or at the least and the largest of each range.

    Returns:
        the largest error relative to the output's range (infinite where a size fails), and a sentence that names the size.
    """
    free = free_axes(hub, interface.flexible)
    worst, where = -1.0, ""
    with open_hub(free) as truth, open_isolated(path, timeout_s=TIMEOUT_S) as session:
        for shapes in end_shapes(interface.flexible):
            shown = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
            feeds = _feeds(hub, shapes, interface)
            try:
                want, got = truth.run(feeds), session.run(feeds)
                found = parity({name: got[name] for name in want}, want)  # a classifier answers with a name besides
            except (EdgewrightError, ValueError, KeyError) as error:
                return float("inf"), f"At {shown} it fails: {error}"
            if _error(found) > worst:
                worst, where = (
                    _error(found),
                    f"At {shown} {found.worst_tensor!r} is off by {_error(found):.2g} of its range.",
                )
    return worst, where


def _error(found: Parity) -> float:
    return found.relative_error if found.finite else float("inf")


def _feeds(hub: ir.Model, shapes: Mapping[str, tuple[int, ...]], interface: CoreMLInterface) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        spec.name: _random(rng, spec, shapes.get(spec.name, spec.shape), hub, interface) for spec in hub_inputs(hub)
    }


def _random(
    rng: np.random.Generator,
    spec: TensorSpec,
    shape: tuple[int | None, ...],
    hub: ir.Model,
    interface: CoreMLInterface,
) -> Array:
    size = tuple(d or 1 for d in shape)
    pixels = interface.pictures.get(spec.name)
    if pixels is not None:
        across = (1, -1, 1, 1) if pixels.layout == "NCHW" else (1, 1, 1, -1)
        scale, bias = (np.array(part, np.float32).reshape(across) for part in (pixels.scale, pixels.bias))
        return np.asarray(rng.integers(0, 256, size).astype(np.float32) * scale + bias)
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return rng.standard_normal(size).astype(spec.dtype)
    return rng.integers(0, index_limit(hub, spec.name), size).astype(spec.dtype)
