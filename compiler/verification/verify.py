"""Execute one artifact in a child process and hold it against the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compiler.calibration.samples import chosen_samples
from compiler.verification.child import Execution
from compiler.verification.metrics import Accuracy, Flips, Parity, accuracy, flips, parity
from runtimes.isolation import open_isolated, run_isolated
from runtimes.session import Array, SampleFeeds, SessionOptions, run_dataset

TIMEOUT_S = 1800.0
AT_ONCE_BYTES = 32 << 20  # of inputs that are sent to a child in one piece; the samples beyond follow batch by batch


@dataclass(frozen=True, slots=True)
class Truth:
    """What every artifact is compared with: inputs, the source's outputs on them, labels if known. Samples on axis 0.

    ``feeds`` may lie on disk (compiler/calibration/samples.py), where it is read as it is needed.
    """

    feeds: SampleFeeds
    outputs: dict[str, Array]
    labels: Array | None
    batch: int | None = None  # what artifacts that take any batch are fed at once
    batches: tuple[int, ...] = ()  # or, of a build for every batch size, in turn

    @property
    def sizes(self) -> int | tuple[int, ...] | None:
        return self.batches or self.batch


@dataclass(frozen=True, slots=True)
class Verified:
    """The evidence of one execution. ``accuracy`` and ``flips`` are None without labels."""

    execution: Execution
    parity: Parity
    accuracy: Accuracy | None
    flips: Flips | None


def verify_artifact(path: Path, runtime: str | None, truth: Truth, *, kernels: bool = False) -> Verified:
    """Run ``path`` on ``runtime`` (None: the preferred one available here) over all of ``truth.feeds``.

    ``kernels``: also read which integer kernels onnxruntime engages for this .onnx file.

    The child process keeps a runtime that crashes on the artifact from taking the build down.

    Raises:
        ChildFailed: the runtime crashed, or ran out of time or memory.
        RuntimeFailure: the runtime refused the artifact or failed while running it.
    """
    first = _at_once(truth)
    feeds = _first_samples(truth, first)
    execution = run_isolated(
        "compiler.verification.child:execute",
        {"path": str(path), "runtime": runtime, "feeds": feeds, "batch": truth.sizes, "kernels": kernels},
        timeout_s=TIMEOUT_S,
    )
    assert isinstance(execution, Execution)
    execution = replace(execution, outputs=_continued(path, execution, truth, first))
    ordered = {name: execution.outputs[name] for name in truth.outputs}
    return Verified(execution, parity(ordered, truth.outputs), *_judge(ordered, truth))


def _first_samples(truth: Truth, count: int) -> dict[str, Array]:
    """The first ``count`` samples of every input, in memory; inputs without a sample axis as they are."""
    return {name: feed[:count] if feed.ndim else np.asarray(feed) for name, feed in truth.feeds.items()}


def _at_once(truth: Truth) -> int:
    """How many samples go in one piece: whole batches that stay below AT_ONCE_BYTES, and at least one."""
    sampled = [feed for feed in truth.feeds.values() if feed.ndim]
    count = max((len(feed) for feed in sampled), default=1)
    if any(len(feed) != count for feed in sampled):
        return count  # no batch axis: a sample is all of each input, see runtimes.session.sample_rows
    size = sum(int(np.prod(feed.shape[1:], dtype=np.int64)) * feed.dtype.itemsize for feed in sampled)
    batch = sum(truth.batches) or truth.batch or 1
    return min(count, max(1, AT_ONCE_BYTES // max(size * batch, 1)) * batch)


def _continued(path: Path, execution: Execution, truth: Truth, first: int) -> dict[str, Array]:
    """The outputs of all samples, of which ``execution`` has the ``first``."""
    count = max((len(feed) for feed in truth.feeds.values() if feed.ndim), default=first)
    if first >= count:
        return execution.outputs
    chosen = range(first, count)
    rest = {name: chosen_samples(feed, chosen) if feed.ndim else feed for name, feed in truth.feeds.items()}
    options = SessionOptions(threads=1)
    with open_isolated(path, runtime=execution.runtime.name, options=options, timeout_s=TIMEOUT_S) as session:
        more = run_dataset(session, rest, truth.sizes)
    return {name: np.concatenate([array, more[name]]) for name, array in execution.outputs.items()}


def _judge(outputs: Mapping[str, Array], truth: Truth) -> tuple[Accuracy | None, Flips | None]:
    if truth.labels is None:
        return None, None
    first = next(iter(truth.outputs))
    return accuracy(outputs[first], truth.labels), flips(outputs[first], truth.outputs[first], truth.labels)
