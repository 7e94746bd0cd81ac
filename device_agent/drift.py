"""Does the data still look like what the model was built for? Histograms on the manifest's edges, compared by PSI.

    PSI = sum_i (p_i - q_i) * ln(p_i / q_i)

With p from n samples, q from m and no drift at all, PSI / (1/n + 1/m) follows approximately a chi-squared distribution
with B - 1 degrees of freedom: to second order PSI = sum (p_i - q_i)^2 / pi_i, and the variance of p_i - q_i is
pi_i (1 - pi_i) (1/n + 1/m), which sums to (B - 1) (1/n + 1/m). That expectation is subtracted, floored at 0.
Source: B. Yurdakul, "Statistical Properties of Population Stability Index", Western Michigan University, 2018, ch. 3.

    KS = max_i |P_i - Q_i|, P and Q the cumulated shares at the edges

which sees a shift that many bins share where PSI sees little in each. Without drift KS / sqrt(1/n + 1/m) follows the Kolmogorov
distribution, whose mean is sqrt(pi/2) ln 2 = 0.8687; binning only lowers it. That is subtracted, floored at 0. Classes have no
order, hence no KS. Source: Marsaglia, Tsang and Wang, "Evaluating Kolmogorov's Distribution", J. Stat. Softw. 8(18), 2003.
"""

import math
import threading
from bisect import bisect_right
from typing import Literal, NamedTuple

import numpy as np

from device_agent.guard import FEW
from runtimes.artifact.manifest import DriftBaseline, Manifest, OutputSpec
from runtimes.session import Array, Feeds

Level = Literal["ok", "warning", "critical", "too-few"]
Counts = Array  # int64
KOLMOGOROV_MEAN = math.sqrt(math.pi / 2) * math.log(2)
_PSEUDO = 0.5  # Jeffreys' prior per bin: an empty bin must not make the logarithm infinite


class DriftReport(NamedTuple):
    """One watched quantity: ``psi`` and ``ks`` as computed, ``corrected`` and ``ks_corrected`` for sample size.

    ``level`` is the worse of what the two corrected figures say, by the same limits.
    """

    quantity: str
    samples: int
    psi: float
    corrected: float
    level: Level
    ks: float = 0.0
    ks_corrected: float = 0.0


def psi(observed: Counts, reference: Counts) -> float:
    """Population stability index of two count vectors of one length."""
    p = (observed + _PSEUDO) / (observed.sum() + _PSEUDO * len(observed))
    q = (reference + _PSEUDO) / (reference.sum() + _PSEUDO * len(reference))
    return float(np.sum((p - q) * np.log(p / q)))


def corrected_psi(observed: Counts, reference: Counts) -> float:
    """``psi`` less its expectation without drift, (B - 1)(1/n + 1/m), floored at 0. Both must hold samples."""
    expected = (len(observed) - 1) * (1 / observed.sum() + 1 / reference.sum())
    return max(0.0, psi(observed, reference) - float(expected))


def ks(observed: Counts, reference: Counts) -> float:
    """Kolmogorov-Smirnov distance of two count vectors over the same edges. Both must hold samples."""
    shares = observed.cumsum() / observed.sum() - reference.cumsum() / reference.sum()
    return float(np.abs(shares).max())


def corrected_ks(observed: Counts, reference: Counts) -> float:
    """``ks`` less its mean without drift, floored at 0."""
    mean = KOLMOGOROV_MEAN * math.sqrt(1 / observed.sum() + 1 / reference.sum())
    return max(0.0, ks(observed, reference) - mean)


class DriftMonitor:
    """Counts of one release on one device; adding two monitors' counts gives the fleet's. Thread-safe."""

    def __init__(self, baseline: DriftBaseline, counts: dict[str, Counts] | None = None) -> None:
        self.baseline = baseline
        self.counts: dict[str, Counts] = {} if counts is None else counts
        self._lock = threading.Lock()
        self._references = self._watched()
        # Arrays at hand: making them for each request took longer than counting.
        self._edges = {name: None if e is None else np.asarray(e) for name, (e, _) in self._references.items()}
        for quantity, (_, reference) in self._references.items():
            self.counts.setdefault(quantity, np.zeros(len(reference), np.int64))

    def references(self) -> dict[str, tuple[tuple[float, ...] | None, Counts]]:
        """Watched quantities: edges (None for classes) and reference counts."""
        return self._references

    def _watched(self) -> dict[str, tuple[tuple[float, ...] | None, Counts]]:
        base = self.baseline
        watched: dict[str, tuple[tuple[float, ...] | None, Counts]] = {
            f"input:{name}": (h.edges, np.asarray(h.counts, np.int64)) for name, h in base.inputs.items()
        }
        if base.confidence is not None:
            watched["confidence"] = (base.confidence.edges, np.asarray(base.confidence.counts, np.int64))
        if base.classes:
            watched["class"] = (None, np.asarray(base.classes, np.int64))
        return watched

    def observe(self, manifest: Manifest, feeds: Feeds, outputs: Feeds) -> None:
        """Count a request's samples (axis 0)."""
        one = self._one_sample(manifest, feeds, outputs)
        if one is not None:
            with self._lock:
                for quantity, value in one.items():
                    bounds, counts = self._references[quantity][0], self.counts[quantity]
                    bin_ = int(value) if bounds is None else bisect_right(bounds, value)
                    if bin_ < len(counts):
                        counts[bin_] += 1
            return
        values = _quantities(manifest, feeds, outputs)
        with self._lock:
            for quantity, edges in self._edges.items():
                if (found := values.get(quantity)) is not None:
                    _count(self.counts[quantity], found, edges)

    def _one_sample(self, manifest: Manifest, feeds: Feeds, outputs: Feeds) -> dict[str, float] | None:
        """What ``_quantities`` says, where all of it is one sample of a few numbers; else None.

        The most frequent request on a board, and Python is through with it before numpy has begun.
        """
        found: dict[str, float] = {}
        for name in self.baseline.inputs:
            array = feeds.get(name)
            if array is None or not _few(array):
                return None
            found[f"input:{name}"] = sum(array.ravel().tolist()) / array.size
        if self.baseline.confidence is None and not self.baseline.classes:
            return found
        spec = next((o for o in manifest.outputs if o.semantic is not None), None)
        scores = outputs.get(spec.name) if spec is not None else None
        if spec is None or scores is None or not _few(scores) or scores.size != scores.shape[-1]:
            return None
        values = scores.ravel().tolist()
        largest = max(values)
        if self.baseline.classes:
            found["class"] = values.index(largest)
        if self.baseline.confidence is not None:
            logits = spec.semantic == "logits"
            found["confidence"] = 1.0 / sum(math.exp(value - largest) for value in values) if logits else largest
        return found

    def merge(self, counts: dict[str, list[int]]) -> None:
        """Add counts of the same quantities from elsewhere. Raises ValueError if their bins differ in number."""
        with self._lock:
            for quantity, more in counts.items():
                if quantity not in self.counts or len(more) != len(self.counts[quantity]):
                    raise ValueError(f"{quantity}: {len(more)} bins do not fit")
            for quantity, more in counts.items():
                self.counts[quantity] += np.asarray(more, np.int64)

    def report(self) -> list[DriftReport]:
        with self._lock:
            counts = {quantity: c.copy() for quantity, c in self.counts.items()}
        return [
            self._judge(quantity, counts[quantity], reference) for quantity, (_, reference) in self.references().items()
        ]

    def _judge(self, quantity: str, observed: Counts, reference: Counts) -> DriftReport:
        samples = int(observed.sum())
        if samples < max(1, self.baseline.min_samples) or reference.sum() == 0:
            return DriftReport(quantity, samples, 0.0, 0.0, "too-few")
        ordered = self._edges[quantity] is not None
        distance = (ks(observed, reference), corrected_ks(observed, reference)) if ordered else (0.0, 0.0)
        corrected = corrected_psi(observed, reference)
        level = self._level(max(corrected, distance[1]))
        return DriftReport(quantity, samples, psi(observed, reference), corrected, level, *distance)

    def _level(self, figure: float) -> Level:
        if figure >= self.baseline.psi_critical:
            return "critical"
        return "warning" if figure >= self.baseline.psi_warning else "ok"


def _few(array: Array) -> bool:
    return array.size <= FEW and array.ndim > 0 and len(array) == 1


def _count(counts: Counts, values: Array, edges: Array | None) -> None:
    """Bin i is [edges[i-1], edges[i]), the outer bins open; without edges the values are the bins' numbers."""
    index = edges.searchsorted(values, side="right") if edges is not None else values
    if len(index) == 1:  # by far the most frequent case, and twice as fast
        if 0 <= (only := int(index[0])) < len(counts):
            counts[only] += 1
        return
    inside = index[(index >= 0) & (index < len(counts))]
    counts += np.bincount(inside, minlength=len(counts))


def _quantities(manifest: Manifest, feeds: Feeds, outputs: Feeds) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name in manifest.drift.inputs:
        array = feeds.get(name)
        if array is not None:
            flat = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
            # sum / n: ndarray.mean takes three times as long on the small inputs of edge nets
            found[f"input:{name}"] = flat.sum(axis=1, dtype=np.float64) / flat.shape[1]
    spec = next((o for o in manifest.outputs if o.semantic is not None), None)
    if spec is not None and (scores := outputs.get(spec.name)) is not None and scores.ndim:
        rows = scores.reshape(-1, scores.shape[-1])
        classes = rows.argmax(axis=1)
        found["class"] = classes
        if manifest.drift.confidence is not None:
            found["confidence"] = _confidence(spec, rows, classes)
    return found


def _confidence(spec: OutputSpec, rows: Array, classes: Array) -> Array:
    """The largest probability of each row."""
    largest = rows[np.arange(len(rows)), classes].astype(np.float64)
    if spec.semantic == "probabilities":
        return np.asarray(largest)
    shifted = np.exp(rows - largest[:, None])
    return np.asarray(1.0 / shifted.sum(axis=1))  # the largest term is exp(0)
