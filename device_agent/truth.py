"""Ground truth that comes back later: an answer is remembered by its request's id, and a label for it says whether it was right.

The share of right answers is held against the accuracy that the build measured: a drop above 2 points warns, above 5 is critical.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque

import numpy as np

from device_agent.alerts import Alert, level_of
from device_agent.errors import RequestError
from runtimes.artifact.manifest import Manifest, OutputSpec
from runtimes.session import Feeds

REMEMBERED = 4096  # answers that wait for their truth; the oldest are forgotten
WINDOW = 1000  # labelled answers per release that the accuracy is taken over
FEWEST = 100  # below, one wrong answer would be a percent
DROP_POINTS = (2.0, 5.0)


class _Tally:
    """Of one model and release. ``right`` and ``wrong`` are counted since the last report."""

    def __init__(self, promised: float | None) -> None:
        self.promised = promised
        self.recent: deque[bool] = deque(maxlen=WINDOW)
        self.right = 0
        self.wrong = 0


class GroundTruth:
    """Thread-safe; everything it holds is bounded and in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[str, str], tuple[str, int, tuple[str, ...] | None]] = OrderedDict()
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def remember(
        self, model: str, request: str, manifest: Manifest, artifact_sha256: str | None, outputs: Feeds
    ) -> None:
        """Keep the class that was answered. Answers of more than one sample, and models without classes, are not kept."""
        spec = _classes(manifest)
        if spec is None:
            return
        scores = np.asarray(outputs[spec.name])
        if scores.ndim == 0 or scores.size != scores.shape[-1]:
            return
        with self._lock:
            self._answers[(model, request)] = (manifest.release, int(scores.argmax()), spec.labels)
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
            self._tallies.setdefault((model, manifest.release), _Tally(promised_accuracy(manifest, artifact_sha256)))

    def feed_back(self, model: str, request: str, label: int | str) -> bool:
        """Whether the answer to ``request`` was right.

        Raises:
            RequestError: no such answer is remembered (404), or the model has no such class (400).
        """
        with self._lock:
            known = self._answers.get((model, request))
            if known is None:
                raise RequestError(
                    f"No answer of {model!r} to request {request!r} is remembered.",
                    remedy="Send an id with the request, and the truth once, not too late.",
                    status=404,
                )
            release, predicted, labels = known
            right = predicted == _index(label, labels)
            del self._answers[(model, request)]
            tally = self._tallies[(model, release)]
            tally.recent.append(right)
            tally.right += right
            tally.wrong += not right
        return right

    def counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(right, wrong) per model and release since the last call, where there is any."""
        with self._lock:
            found = {key: (t.right, t.wrong) for key, t in self._tallies.items() if t.right or t.wrong}
            for key in found:
                self._tallies[key].right = self._tallies[key].wrong = 0
        return found

    def alerts(self) -> list[Alert]:
        """The drop in accuracy points per release with enough labelled answers and a promised accuracy."""
        with self._lock:
            judged = [
                (f"{model}/{release}", 100 * (t.promised - sum(t.recent) / len(t.recent)))
                for (model, release), t in self._tallies.items()
                if t.promised is not None and len(t.recent) >= FEWEST
            ]
        return [Alert(subject, "accuracy drop points", level_of(drop, DROP_POINTS), drop) for subject, drop in judged]


def promised_accuracy(manifest: Manifest, artifact_sha256: str | None) -> float | None:
    """The share of right answers that the build measured for the artifact that runs; None where it measured none."""
    for artifact in manifest.artifacts:
        measured = artifact.quality.get("accuracy")
        if artifact.sha256 == artifact_sha256 and isinstance(measured, list) and measured:
            return float(measured[0])
    return None


def _classes(manifest: Manifest) -> OutputSpec | None:
    return next((o for o in manifest.outputs if o.labels or o.semantic is not None), None)


def _index(label: int | str, labels: tuple[str, ...] | None) -> int:
    if isinstance(label, int) and not isinstance(label, bool):
        return label
    if isinstance(label, str) and labels and label in labels:
        return labels.index(label)
    raise RequestError(f"The model has no class {str(label)[:80]!r}.", remedy="Send a class's name or its number.")
