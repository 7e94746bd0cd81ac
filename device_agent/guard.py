"""What goes into a model and what comes out: refused before it does harm, with the tensor and the element named."""

from __future__ import annotations

import math

import numpy as np

from device_agent.errors import RequestError
from runtimes.artifact.manifest import InputSpec, Manifest
from runtimes.session import Array, Feeds, TensorSpec

CONSTANT_AFTER = 100  # equal answers to different requests
LEARNED_FROM = 100  # answers whose magnitude counts as usual
EXPLODED = 1000.0  # times the largest usual magnitude
FEW = 64  # elements that Python goes through faster than numpy is called
_LOOKED_AT = 4096  # elements of a tensor at most: the watch must cost less than the request


def check_inputs(manifest: Manifest, feeds: Feeds, max_bytes: int | None = None) -> None:
    """Check size, names, dtypes, shapes, finiteness and range against the manifest. Raises RequestError (400, 413)."""
    if max_bytes is not None and (size := sum(array.nbytes for array in feeds.values())) > max_bytes:
        raise RequestError(
            f"The inputs have {size} bytes, at most {max_bytes} are taken.",
            remedy="Send smaller batches, or raise max_input_bytes of the model.",
            status=413,
        )
    specs = manifest.inputs
    if len(feeds) != len(specs) or not all(spec.name in feeds for spec in specs):
        expected = {spec.name for spec in specs}
        missing, extra = sorted(expected - set(feeds)), sorted(set(feeds) - expected)
        raise RequestError(
            f"The inputs do not match: missing {missing}, unknown {extra}.", remedy=f"Send exactly {sorted(expected)}."
        )
    for spec in specs:
        _check_input(spec, feeds[spec.name])


def _check_input(spec: InputSpec, array: Array) -> None:
    if not TensorSpec(spec.name, spec.dtype, spec.shape).accepts(array):
        want = ["?" if d is None else d for d in spec.shape]
        raise RequestError(
            f"Input {spec.name!r} is {array.dtype}{list(array.shape)}, the model takes {spec.dtype}{want}.",
            remedy="Send the dtype and shape that the model's metadata names.",
        )
    if array.size == 0:
        raise RequestError(f"Input {spec.name!r} is empty.", remedy="Send at least one sample.")
    if spec.range is None:
        if array.dtype.kind == "f" and not all(map(math.isfinite, extremes(array))):
            raise _not_finite(spec, array)
        return
    low, high = extremes(array)
    # NaN takes part in no comparison, so that one pair of them judges range and finiteness.
    if not (spec.range[0] <= low and high <= spec.range[1]):
        if not np.isfinite(array).all():
            raise _not_finite(spec, array)
        raise RequestError(
            f"Input {spec.name!r} spans {low:g} to {high:g}, allowed {spec.range[0]:g} to {spec.range[1]:g}.",
            remedy="Apply the preprocessing that the manifest describes.",
        )


def extremes(array: Array) -> tuple[float, float]:
    """The smallest and the largest element; NaN where any element is. ``array`` is not empty.

    A reduction of numpy's takes microseconds whatever the size; the inputs and outputs of edge nets are often a few numbers.
    """
    if array.size <= FEW:
        values = array.ravel().tolist()
        if math.isfinite(sum(values)):  # NaN and infinity reach the sum from anywhere
            return min(values), max(values)
    return float(array.min()), float(array.max())


def _not_finite(spec: InputSpec, array: Array) -> RequestError:
    where = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
    return RequestError(f"Input {spec.name!r} is not finite at {where}.", remedy="Repair the sensor's data.")


def check_outputs(outputs: Feeds) -> float:
    """The largest magnitude among the float outputs; 0 where there are none.

    A model that answers NaN or infinity is broken: its answer is withheld. Raises RequestError (500).
    """
    largest = 0.0
    for name, array in outputs.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        low, high = extremes(array)
        magnitude = max(-low, high)
        if not math.isfinite(magnitude):
            raise RequestError(
                f"Output {name!r} is not finite; the answer is withheld.",
                remedy="Roll the model back; the agent does so by itself while the release is on probation.",
                status=500,
            )
        largest = max(largest, magnitude)
    return largest


class OutputWatch:
    """Notices answers that are finite and yet wrong: the same one whatever is asked, or one of another magnitude.

    One release's answers; calls must not overlap.
    """

    def __init__(self) -> None:
        self._last: tuple[list[bytes], list[bytes]] | None = None
        self._equal = self._seen = 0
        self._usual = 0.0
        self._raised: set[str] = set()

    def observe(self, feeds: Feeds, outputs: Feeds, magnitude: float) -> list[str]:
        """What is newly wrong with this answer: "constant", "exploding", or nothing. Each is said once until it is over.

        Args:
            magnitude: the largest among the outputs, as ``check_outputs`` found it.
        """
        found = []
        if self._is_constant(_heads(feeds), _heads(outputs)):
            found.append("constant")
        if self._explodes(magnitude):
            found.append("exploding")
        if not found and not self._raised:
            return found
        fresh = [name for name in found if name not in self._raised]
        self._raised = set(found)
        return fresh

    def _is_constant(self, asked: list[bytes], answered: list[bytes]) -> bool:
        if self._last is not None:
            if self._last[1] != answered:
                self._equal = 0
            elif self._last[0] != asked:  # an equal question may have an equal answer
                self._equal += 1
        self._last = (asked, answered)
        return self._equal >= CONSTANT_AFTER

    def _explodes(self, magnitude: float) -> bool:
        self._seen += 1
        if self._seen <= LEARNED_FROM:
            self._usual = max(self._usual, magnitude)
            return False
        return magnitude > EXPLODED * max(self._usual, 1e-6)


def _heads(arrays: Feeds) -> list[bytes]:
    return [
        array.tobytes() if array.size <= _LOOKED_AT else array.reshape(-1)[:_LOOKED_AT].tobytes()
        for array in arrays.values()
    ]
