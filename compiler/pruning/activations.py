"""Looks inside a hub model: runs it on samples and yields chosen intermediate values, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from compiler.calibration.samples import chosen_samples
from compiler.errors import DataError
from runtimes.session import Array, SampleFeeds, Samples, TensorSpec, check_feeds


def sample_count(feeds: SampleFeeds) -> int:
    """Samples on axis 0. Raises DataError if there are none or the inputs disagree."""
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in feeds.items()}
    if not counts or len(set(counts.values())) > 1 or 0 in counts.values():
        raise DataError(
            f"The calibration data holds these numbers of samples: {counts}.",
            remedy="Give every input as many samples, at least one.",
        )
    return next(iter(counts.values()))


def take(feeds: SampleFeeds, samples: Sequence[int]) -> dict[str, Samples]:
    """The samples at these positions; what lies on disk stays there."""
    return {name: chosen_samples(array, list(samples)) for name, array in feeds.items()}


def stream(model: ir.Model, names: Sequence[str], feeds: SampleFeeds) -> Iterator[dict[str, Array]]:
    """Yield the values called ``names`` for each batch of ``feeds`` (the model's own batch size).

    Only what these values need is computed: they become the outputs, and onnxruntime drops the rest of the graph. A last
    incomplete batch is left out, unless it is the only one.

    Raises:
        DataError: fewer samples than one batch. InputMismatch: wrong names, dtypes or shapes.
        ModelLoadError, InferenceFailed: onnxruntime refuses the model.
    """
    from runtimes.onnxruntime_session import open_bytes

    inputs = {value.name for value in model.graph.inputs}
    wanted = list(dict.fromkeys(names))
    computed = [name for name in wanted if name not in inputs]
    proto = ir.to_proto(model)
    values = {output.name: output for node in model.graph for output in node.outputs}
    del proto.graph.output[:]
    proto.graph.output.extend(ir.to_proto(values[name]) for name in computed or list(values)[-1:])
    total = sample_count(feeds)
    with open_bytes(proto.SerializeToString(), name="the hub model") as session:
        check_feeds(tuple(TensorSpec(s.name, s.dtype, (None, *s.shape[1:])) for s in session.inputs), feeds)
        batch = next((s.shape[0] for s in session.inputs if s.shape), None) or min(total, 16)
        if total < batch:
            raise DataError(
                f"The model takes batches of {batch}, the data holds {total} samples.", remedy="Give more samples."
            )
        for start in range(0, total - batch + 1, batch):
            chunk = {name: array[start : start + batch] for name, array in feeds.items()}
            found = session.run(chunk) if computed else {}
            yield {name: chunk[name] if name in inputs else found[name] for name in wanted}
