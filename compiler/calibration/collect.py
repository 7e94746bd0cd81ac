"""Runs a float hub over calibration data and observes every activation.

Values are tapped in groups whose arrays fit a memory budget, one pass over the data per group; small models need one pass.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.calibration.dataset import Dataset
from compiler.calibration.observers import Joint, Range
from compiler.errors import DataError
from compiler.hub_session import open_hub
from runtimes.session import Array

LOGGER = logging.getLogger(__name__)

# Tapped arrays of one run live at the same time; the histograms beside them are 16 KiB each.
GROUP_BYTES = 256 << 20

Progress = Callable[[str, int, int], None]  # what is being done, done, total


@dataclass(frozen=True, slots=True)
class Calibration:
    """``ranges`` per float32 activation (graph inputs and node outputs), by value name."""

    ranges: Mapping[str, Range]
    observer: str
    samples: int
    dataset_sha256: str


def collect(
    model: ir.Model,
    dataset: Dataset,
    *,
    observer: str = "min-max",
    values: Container[str] | None = None,
    progress: Progress | None = None,
    group_bytes: int = GROUP_BYTES,
) -> Calibration:
    """Observe all activations of ``model`` over ``dataset``.

    Args:
        model: a float hub.
        observer: a name in OBSERVERS.
        values: names of the activations to observe beside the inputs; None observes all.
        progress: called after every run.
        group_bytes: the most memory that the tapped arrays of one run may take.

    Raises:
        RegistryMiss: no such observer.
        DataError: an activation became NaN or infinite; the message names the first value and the sample.
    """
    found = collect_by(model, dataset, (observer,), values=values, progress=progress, group_bytes=group_bytes)
    return found[observer]


def collect_by(
    model: ir.Model,
    dataset: Dataset,
    names: Sequence[str],
    *,
    values: Container[str] | None = None,
    progress: Progress | None = None,
    group_bytes: int = GROUP_BYTES,
) -> dict[str, Calibration]:
    """As ``collect``, by several observers in the same passes; results by the observers' names."""
    observers: dict[str, Joint] = {v.name: Joint(names) for v in model.graph.inputs if v.name and _is_float(v)}
    for name, array in dataset.feeds.items():
        if name in observers:
            for start in range(0, dataset.count, dataset.batch):
                observers[name].update(array[start : start + dataset.batch])
    groups = list(tap_groups(model, values, group_bytes))
    runs = len(groups) * math.ceil(dataset.count / dataset.batch)
    LOGGER.info("calibrating on %d samples, %d pass(es), by %s", dataset.count, len(groups), ", ".join(names))
    done = 0
    for group in groups:
        seen = {name: Joint(names) for name in group}
        with open_hub(model, taps=group) as session:
            for index, feeds in enumerate(dataset.batches()):
                answers = session.run(feeds)
                for name, one in seen.items():
                    _observe(one, name, answers[name], index * dataset.batch)
                done += 1
                if progress:
                    progress("calibrate", done, runs)
        observers.update(seen)
    found = {value: one.results() for value, one in sorted(observers.items())}
    return {
        name: Calibration({v: ranges[name] for v, ranges in found.items()}, name, dataset.count, dataset.digest)
        for name in names
    }


def _observe(observer: Joint, name: str, values: Array, sample: int) -> None:
    if not np.isfinite(values).all():
        raise DataError(
            f"Value {name!r} became NaN or infinite while running calibration sample {sample}.",
            remedy="Check the sample's range against what the model was trained on, and the model's weights.",
        )
    observer.update(values)


def tap_groups(model: ir.Model, wanted: Container[str] | None, limit: int) -> Iterator[list[str]]:
    """Names of float32 node outputs, in graph order, in groups of at most ``limit`` bytes (a larger value stands alone)."""
    group: list[str] = []
    size = 0
    for value in (output for node in model.graph for output in node.outputs):
        if not value.name or not _is_float(value) or (wanted is not None and value.name not in wanted):
            continue
        value_bytes = 4 * math.prod(d for d in (value.shape or ()) if isinstance(d, int))
        if group and size + value_bytes > limit:
            yield group
            group, size = [], 0
        group.append(value.name)
        size += value_bytes
    if group:
        yield group


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT
