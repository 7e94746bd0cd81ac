"""What goes into a model and what comes out: refused before it does harm, with the tensor and the element named."""

from __future__ import annotations

import numpy as np

from device_agent.errors import RequestError
from runtimes.artifact.manifest import InputSpec, Manifest
from runtimes.session import Array, Feeds

CONSTANT_AFTER = 100  # equal answers to different requests
LEARNED_FROM = 100  # answers whose magnitude counts as usual
EXPLODED = 1000.0  # times the largest usual magnitude
_LOOKED_AT = 4096  # elements of a tensor at most: the watch must cost less than the request


def check_inputs(manifest: Manifest, feeds: Feeds, max_bytes: int | None = None) -> None:
    """Check size, names, dtypes, shapes, finiteness and range against the manifest. Raises RequestError (400, 413)."""
    if max_bytes is not None and (size := sum(array.nbytes for array in feeds.values())) > max_bytes:
        raise RequestError(
            f"The inputs have {size} bytes, at most {max_bytes} are taken.",
            remedy="Send smaller batches, or raise max_input_bytes of the model.",
            status=413,
        )
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


class OutputWatch:
    """Notices answers that are finite and yet wrong: the same one whatever is asked, or one of another magnitude.

    One release's answers; calls must not overlap.
    """

    def __init__(self) -> None:
        self._last: tuple[list[Array], list[Array]] | None = None
        self._equal = self._seen = 0
        self._usual = 0.0
        self._raised: set[str] = set()

    def observe(self, feeds: Feeds, outputs: Feeds) -> list[str]:
        """What is newly wrong with this answer: "constant", "exploding", or nothing. Each is said once until it is over."""
        asked, answered = _heads(feeds), _heads(outputs)
        found = {"constant": self._is_constant(asked, answered), "exploding": self._explodes(answered)}
        fresh = [name for name, wrong in found.items() if wrong and name not in self._raised]
        self._raised = {name for name, wrong in found.items() if wrong}
        return fresh

    def _is_constant(self, asked: list[Array], answered: list[Array]) -> bool:
        if self._last is not None:
            same_answer = all(map(np.array_equal, self._last[1], answered))
            if not same_answer:
                self._equal = 0
            elif not all(map(np.array_equal, self._last[0], asked)):  # an equal question may have an equal answer
                self._equal += 1
        self._last = (asked, answered)
        return self._equal >= CONSTANT_AFTER

    def _explodes(self, answered: list[Array]) -> bool:
        largest = max((float(np.abs(a).max(initial=0)) for a in answered if a.dtype.kind == "f"), default=0.0)
        self._seen += 1
        if self._seen <= LEARNED_FROM:
            self._usual = max(self._usual, largest)
            return False
        return largest > EXPLODED * max(self._usual, 1e-6)


def _heads(arrays: Feeds) -> list[Array]:
    return [array.reshape(-1)[:_LOOKED_AT].copy() for array in arrays.values()]
