"""Execute one artifact in a child process and hold it against the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.verification.child import Execution
from compiler.verification.metrics import Accuracy, Flips, Parity, accuracy, flips, parity
from runtimes.isolation import run_isolated
from runtimes.session import Array

TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Truth:
    """What every artifact is compared with: inputs, the source's outputs on them, labels if known. Samples on axis 0."""

    feeds: dict[str, Array]
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
    execution = run_isolated(
        "compiler.verification.child:execute",
        {"path": str(path), "runtime": runtime, "feeds": truth.feeds, "batch": truth.sizes, "kernels": kernels},
        timeout_s=TIMEOUT_S,
    )
    assert isinstance(execution, Execution)
    ordered = {name: execution.outputs[name] for name in truth.outputs}
    return Verified(execution, parity(ordered, truth.outputs), *_judge(ordered, truth))


def _judge(outputs: Mapping[str, Array], truth: Truth) -> tuple[Accuracy | None, Flips | None]:
    if truth.labels is None:
        return None, None
    first = next(iter(truth.outputs))
    return accuracy(outputs[first], truth.labels), flips(outputs[first], truth.outputs[first], truth.labels)
