"""What goes into a model and what comes out: refused before it does harm, with the tensor and the element named."""

from __future__ import annotations

import numpy as np

from device_agent.errors import RequestError
from runtimes.artifact.manifest import InputSpec, Manifest
from runtimes.session import Array, Feeds


def check_inputs(manifest: Manifest, feeds: Feeds) -> None:
    """Check names, dtypes, shapes, finiteness and range against the manifest. Raises RequestError (400)."""
    expected = {spec.name for spec in manifest.inputs}
    if set(feeds) != expected:
        missing, extra = sorted(expected - set(feeds)), sorted(set(feeds) - expected)
        raise RequestError(
            f"The inputs do not match: missing {missing}, unknown {extra}.", remedy=f"Send exactly {sorted(expected)}."
        )
    for spec in manifest.inputs:
        _check_input(spec, feeds[spec.name])


def _check_input(spec: InputSpec, array: Array) -> None:
    shape_fits = array.ndim == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if array.dtype != np.dtype(spec.dtype) or not shape_fits:
        want = ["?" if d is None else d for d in spec.shape]
        raise RequestError(
            f"Input {spec.name!r} is {array.dtype}{list(array.shape)}, the model takes {spec.dtype}{want}.",
            remedy="Send the dtype and shape that the model's metadata names.",
        )
    if array.size == 0:
        raise RequestError(f"Input {spec.name!r} is empty.", remedy="Send at least one sample.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
        raise RequestError(f"Input {spec.name!r} is not finite at {where}.", remedy="Repair the sensor's data.")
    if spec.range is not None:
        low, high = float(array.min()), float(array.max())
        if low < spec.range[0] or high > spec.range[1]:
            raise RequestError(
                f"Input {spec.name!r} spans {low:g} to {high:g}, allowed {spec.range[0]:g} to {spec.range[1]:g}.",
                remedy="Apply the preprocessing that the manifest describes.",
            )


def check_outputs(outputs: Feeds) -> None:
    """A model that answers NaN or infinity is broken: its answer is withheld. Raises RequestError (500)."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RequestError(
                f"Output {name!r} is not finite; the answer is withheld.",
                remedy="Roll the model back; the agent does so by itself while the release is on probation.",
                status=500,
            )
