"""Which channels cost least: the order in which a group's channels leave, and what each removal costs.

A consumer computes y = W x (a convolution: the same for each kernel position, taken as one more output). With x's
covariance C, removing channel c and repairing the others by least squares costs

    W_c (C^-1)_cc^-1 W_c^T        and leaves   W <- W - C^-1[:, c] (C^-1)_cc^-1 W_c

(Hassibi and Stork 1993, Optimal Brain Surgeon, with the consumer's reconstruction error in place of the loss). The mean of
x costs nothing, because the repair moves it into the bias. Costs are parts of each consumer's output variance, so that
they compare across groups, and they add up over the consumers of a coupled group. Greedy removal with the two updates
knows that of two twins only one is superfluous, which one-shot scores do not.

``energy`` takes the channels for independent, ``weight`` takes them for white and needs no data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.pruning.activations import stream
from compiler.pruning.flow import Flow, constant, name_of
from compiler.pruning.groups import Candidate
from compiler.pruning.types import Role
from profiles.registry import Registry
from runtimes.session import SampleFeeds

Matrix = NDArray[np.float64]

# Added to the covariance, relative to its mean diagonal: channels that calibration saw dead stay invertible.
DAMPING = 1e-4
# Above this many input positions (a wide Flatten) the full inverse is not worth its time: independence is assumed.
LARGEST_FULL = 1536
_POSITIONS = 256  # per sample and consumer; neighbouring positions say nearly the same

SALIENCIES: Registry[Callable[[Matrix], Matrix]] = Registry(
    "saliency", how_to_add="Add a function from covariance to covariance in compiler/pruning/saliency.py."
)
SALIENCIES.add("surgeon", lambda covariance: covariance if len(covariance) <= LARGEST_FULL else _diagonal(covariance))
SALIENCIES.add("energy", lambda covariance: _diagonal(covariance))
SALIENCIES.add("weight", lambda covariance: np.eye(len(covariance)))


def _diagonal(covariance: Matrix) -> Matrix:
    return np.diag(np.diag(covariance))


@dataclass(slots=True)
class _Reader:
    """One consumer while channels leave: weight [positions, outputs * kernel], inverse covariance, positions per class."""

    weight: Matrix
    inverse: Matrix
    energy: float
    positions: dict[int, NDArray[np.int64]]

    def cost(self, channel: int) -> float:
        at = self.positions.get(channel)
        if at is None:
            return 0.0
        rows = self.weight[at]
        return float((rows * np.linalg.solve(self.inverse[np.ix_(at, at)], rows)).sum()) / self.energy

    def remove(self, channel: int) -> None:
        at = self.positions.pop(channel, None)
        if at is None:
            return
        gain = self.inverse[:, at] @ np.linalg.inv(self.inverse[np.ix_(at, at)])
        self.weight -= gain @ self.weight[at]
        self.inverse -= gain @ self.inverse[at]
        # What left must not come back through rounding.
        self.inverse[at], self.inverse[:, at], self.weight[at] = 0.0, 0.0, 0.0


class Saliency:
    """Orders channels for one model. ``covariances`` come from ``measure``, by consumer node name."""

    def __init__(self, flow: Flow, covariances: dict[str, Matrix], kind: str) -> None:
        """Raises RegistryMiss for an unknown ``kind``."""
        self._flow, self._view = flow, SALIENCIES.get(kind)
        self._covariances = covariances

    def order(self, group: Candidate, limit: int) -> list[tuple[int, float]]:
        """Up to ``limit`` removable channels in the order of their removal, each with the cost that it adds."""
        readers = [self._reader(name) for name in group.consumers]
        left = [channel for channel in group.classes if channel in group.removable]
        result: list[tuple[int, float]] = []
        while left and len(result) < limit:
            costs = [sum(reader.cost(channel) for reader in readers) for channel in left]
            channel = left.pop(int(np.argmin(costs)))
            result.append((channel, max(min(costs), 0.0)))
            for reader in readers:
                reader.remove(channel)
        return result

    def _reader(self, node: str) -> _Reader:
        binding = next(b for b in self._flow.bindings if b.role is Role.CONSUMES and b.node == node)
        array = constant(self._flow.model.graph.initializers[binding.initializer])
        assert array is not None
        weight: Matrix = np.moveaxis(array, binding.axis, 0).reshape(len(binding.ids), -1).astype(np.float64)
        covariance = self._view(self._covariances.get(node, np.eye(len(weight))))
        damped = covariance + np.eye(len(weight)) * max(DAMPING * float(np.trace(covariance)) / len(weight), 1e-12)
        classes = self._flow.roots(binding.ids)
        positions = {int(c): np.flatnonzero(classes == c) for c in np.unique(classes)}
        energy = max(float((weight * (damped @ weight)).sum()), 1e-30)
        inverse: Matrix = np.linalg.inv(damped).astype(np.float64)
        return _Reader(weight, inverse, energy, positions)


def measure(flow: Flow, feeds: SampleFeeds) -> dict[str, Matrix]:
    """Covariance of the channels that each consumer reads, over samples and a subset of positions; float64."""
    nodes = {name_of(node): node for node in flow.model.graph}
    reading = {b.node: nodes[b.node] for b in flow.bindings if b.role is Role.CONSUMES}
    sums = {name: _Moments(flow.model, node, flow) for name, node in reading.items()}
    if not sums:
        return {}
    for values in stream(flow.model, [entry.value for entry in sums.values()], feeds):
        for entry in sums.values():
            entry.add(values[entry.value])
    return {name: entry.covariance() for name, entry in sums.items()}


class _Moments:
    def __init__(self, model: ir.Model, node: ir.Node, flow: Flow) -> None:
        value = node.inputs[0]
        labels = flow.of(value)
        assert value is not None and labels is not None
        self.value, self._axis = value.name or "", labels.axis
        count = len(labels.ids)
        self._first, self._second, self._rows = np.zeros(count), np.zeros((count, count)), 0

    def add(self, array: NDArray[np.float32]) -> None:
        rows = np.moveaxis(array, self._axis, -1).reshape(-1, array.shape[self._axis])
        step = max(1, len(rows) // (_POSITIONS * array.shape[0]))
        taken = rows[::step].astype(np.float64)
        self._first += taken.sum(0)
        self._second += taken.T @ taken
        self._rows += len(taken)

    def covariance(self) -> Matrix:
        """Shrunk towards its diagonal where rows are few for the columns: from n rows, n columns seem to predict all others.

        The weight p / (p + n) of the diagonal vanishes with data; a channel that never varies keeps a zero.
        """
        mean = self._first / self._rows
        found: Matrix = self._second / self._rows - np.outer(mean, mean)
        share = len(found) / (len(found) + self._rows)
        shrunk: Matrix = (1 - share) * found + share * _diagonal(found)
        return shrunk
